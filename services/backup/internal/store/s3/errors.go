package s3

import (
	"errors"
	"fmt"
	"net/http"
	"slices"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
)

// Error codes that decide something here. See "Error responses" in the S3 API reference.
const (
	codeNoSuchBucket   = "NoSuchBucket"
	codeNoSuchUpload   = "NoSuchUpload"
	codePrecondition   = "PreconditionFailed"
	codeConflict       = "ConditionalRequestConflict"
	codeNoLockOnObject = "NoSuchObjectLockConfiguration"
)

// code is the store's own name for an error; "" when err is not an answer of the store.
func code(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) && !ofAnother(err) {
		return api.ErrorCode()
	}
	return ""
}

// status is the HTTP status of an error; 0 when err is not an answer of the store.
func status(err error) int {
	if ofAnother(err) { // its 404 says nothing about an object
		return 0
	}
	return anyStatus(err)
}

func anyStatus(err error) int {
	if resp, ok := errors.AsType[*awshttp.ResponseError](err); ok {
		return resp.HTTPStatusCode()
	}
	return 0
}

// ofAnother says that not the store answered but the service that was asked for credentials.
func ofAnother(err error) bool {
	outer, ok := errors.AsType[*smithy.OperationError](err)
	if !ok {
		return false
	}
	_, ok = errors.AsType[*smithy.OperationError](outer.Err)
	return ok
}

// unsupported says that the store does not have the operation at all.
func unsupported(err error) bool {
	return status(err) == http.StatusNotImplemented || status(err) == http.StatusMethodNotAllowed
}

// noLockInBucket says that the bucket was not made for object lock, or the store has none.
func noLockInBucket(err error) bool {
	switch code(err) {
	case "InvalidRequest", "ObjectLockConfigurationNotFoundError":
		return true
	}
	return unsupported(err)
}

// translate adds our sentinels to the SDK's errors.
func translate(err error) error {
	known := []error{store.ErrNoBucket, store.ErrNotFound, store.ErrPrecondition, store.ErrDenied, store.ErrLocked}
	if slices.ContainsFunc(known, func(k error) bool { return errors.Is(err, k) }) {
		return err
	}
	if ofAnother(err) {
		if s := anyStatus(err); s >= http.StatusBadRequest && s < http.StatusInternalServerError && s != http.StatusTooManyRequests {
			return fmt.Errorf("%w: %w", store.ErrDenied, err)
		}
		return err
	}
	switch code(err) {
	case codeNoSuchBucket:
		return fmt.Errorf("%w: %w", store.ErrNoBucket, err)
	case codeNoSuchUpload: // somebody aborted our upload: that says nothing about an object
		return err
	case codePrecondition:
		return fmt.Errorf("%w: %w", store.ErrPrecondition, err)
	case codeConflict:
		return fmt.Errorf("somebody else is writing the same object at this moment, try again: %w", err)
	case "ExpiredToken", "InvalidToken", "AuthorizationHeaderMalformed":
		return fmt.Errorf("%w: %w", store.ErrDenied, err)
	}
	switch status(err) {
	case http.StatusNotFound:
		return fmt.Errorf("%w: %w", store.ErrNotFound, err)
	case http.StatusPreconditionFailed:
		return fmt.Errorf("%w: %w", store.ErrPrecondition, err)
	case http.StatusUnauthorized, http.StatusForbidden:
		return fmt.Errorf("%w: %w", store.ErrDenied, err)
	}
	return err
}
