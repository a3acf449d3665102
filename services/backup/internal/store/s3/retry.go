package s3

import (
	"errors"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
)

const (
	// Four attempts wait for about seven seconds at most. What lasts longer is for the job's own retries, which tell.
	maxAttempts = 4
	maxBackoff  = 5 * time.Second
)

// retryer is the SDK's standard one, which also says that it retries.
type retryer struct {
	*retry.Standard
	retried func(string)
}

func newRetryer(set settings, files *fileCredentials) *retryer {
	return &retryer{retried: set.retried, Standard: retry.NewStandard(func(o *retry.StandardOptions) {
		o.MaxAttempts, o.MaxBackoff = maxAttempts, set.backoff
		// One bucket of tokens for all requests would let a storm of 503 fail requests that were never tried again.
		o.RateLimiter = ratelimit.None
		o.Retryables = append(o.Retryables, retry.RetryableErrorCode{Codes: map[string]struct{}{
			// S3's answer to two conditional writes at the same time; the repetition is told how it went.
			codeConflict: {},
			// What arrived is not what was sent.
			"BadDigest": {}, "XAmzContentSHA256Mismatch": {}, "XAmzContentChecksumMismatch": {},
		}})
		if files != nil {
			o.Retryables = append(o.Retryables, retry.IsErrorRetryableFunc(func(err error) aws.Ternary {
				denied := status(err) == http.StatusForbidden || status(err) == http.StatusUnauthorized
				return aws.BoolTernary(denied && files.changed())
			}))
		}
	})}
}

// RetryDelay implements aws.Retryer. It is asked once before each further attempt.
func (r *retryer) RetryDelay(attempt int, err error) (time.Duration, error) {
	if r.retried != nil {
		reason := code(err)
		if _, ok := errors.AsType[*stalledError](err); ok {
			reason = "stalled"
		}
		if reason == "" {
			reason = "connection"
		}
		r.retried(reason)
	}
	return r.Standard.RetryDelay(attempt, err) //nolint:wrapcheck // the SDK's own interface
}
