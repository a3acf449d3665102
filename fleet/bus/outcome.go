package bus

import (
	"errors"
	"time"
)

// TerminalReason is the short reason of an error that was marked with Terminal.
func TerminalReason(err error) (reason string, ok bool) {
	var terminal *terminalError
	if !errors.As(err, &terminal) {
		return "", false
	}
	return terminal.reason, true
}

// RetryDelay is the delay of an error that was marked with RetryAfter.
func RetryDelay(err error) (after time.Duration, ok bool) {
	var retry *retryError
	if !errors.As(err, &retry) {
		return 0, false
	}
	return retry.after, true
}
