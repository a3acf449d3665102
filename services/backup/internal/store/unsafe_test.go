package store_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
)

func TestUnsafe(t *testing.T) {
	good := store.Capabilities{
		Endpoint: "https://s3.example.com", Bucket: "backups", ConditionalWrites: true, MultipartAbort: true, ObjectLock: "enabled",
	}
	locked := config.ObjectStore{ObjectLock: config.ObjectLock{Mode: "COMPLIANCE", Days: 1}}
	everything := []string{config.LacksConditionalWrites, config.LacksMultipartAbort}
	for name, c := range map[string]struct {
		change func(*store.Capabilities)
		cfg    config.ObjectStore
		want   []string // a part of each sentence
	}{
		"good":        {func(*store.Capabilities) {}, locked, nil},
		"no lock":     {func(c *store.Capabilities) { c.ObjectLock = "off" }, config.ObjectStore{}, nil},
		"conditions":  {func(c *store.Capabilities) { c.ConditionalWrites = false }, locked, []string{`"no-conditional-writes"`}},
		"abort":       {func(c *store.Capabilities) { c.MultipartAbort = false }, locked, []string{`"no-multipart-abort"`}},
		"lock is off": {func(c *store.Capabilities) { c.ObjectLock = "off" }, locked, []string{"has no object lock"}},
		"lock is unknown": {
			func(c *store.Capabilities) { c.ObjectLock = "unknown" }, locked, []string{"s3:GetBucketObjectLockConfiguration"},
		},
		"everything": {
			func(c *store.Capabilities) { *c = store.Capabilities{Endpoint: c.Endpoint, Bucket: c.Bucket} }, locked,
			[]string{`"no-conditional-writes"`, `"no-multipart-abort"`, "has no object lock"},
		},
		"accepted, but for the lock": {
			func(c *store.Capabilities) { *c = store.Capabilities{Endpoint: c.Endpoint, Bucket: c.Bucket} },
			config.ObjectStore{ObjectLock: locked.ObjectLock, Accept: everything},
			[]string{"has no object lock"},
		},
		"accepted": {
			func(c *store.Capabilities) { *c = store.Capabilities{} }, config.ObjectStore{Accept: everything}, nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			caps := good
			c.change(&caps)
			got := caps.Unsafe(c.cfg)
			require.Len(t, got, len(c.want))
			for i, part := range c.want {
				assert.Contains(t, got[i], part)
				assert.Contains(t, got[i], "bucket backups at https://s3.example.com")
			}
		})
	}
}
