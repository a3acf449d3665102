package config

import (
	"fmt"
	"time"

	"github.com/prometheus/common/model"
)

// Period is a length of time as Prometheus writes it: 36h, 30d, 2w, 1y (a year is 365 days, a day 24 hours).
type Period time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *Period) UnmarshalText(text []byte) error {
	d, err := model.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a period such as 36h, 30d or 2w", text)
	}
	*p = Period(d)
	return nil
}

// String prints it as it is written.
func (p Period) String() string { return model.Duration(p).String() }
