package store

import (
	"fmt"
	"slices"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

// Unsafe says, a sentence each, why a bucket with these capabilities must not be used as it is configured; nothing when it
// may. Each says what to do about it.
func (c Capabilities) Unsafe(cfg config.ObjectStore) []string {
	var all []string
	where := fmt.Sprintf("bucket %s at %s", c.Bucket, c.Endpoint)
	accepts := func(what string) bool { return slices.Contains(cfg.Accept, what) }
	if !c.ConditionalWrites && !accepts(config.LacksConditionalWrites) {
		all = append(all, fmt.Sprintf("%s ignores If-None-Match, so two workers could overwrite each other's snapshot; if the claims "+
			"in NATS are enough for you, add %q to the store's accept", where, config.LacksConditionalWrites))
	}
	if !c.MultipartAbort && !accepts(config.LacksMultipartAbort) {
		all = append(all, fmt.Sprintf("%s did not let go of an aborted multipart upload (or these credentials may not abort one), so "+
			"what failed uploads leave fills it; allow s3:AbortMultipartUpload, or have the bucket expire unfinished uploads and "+
			"add %q to the store's accept", where, config.LacksMultipartAbort))
	}
	if cfg.ObjectLock.Mode != "" {
		switch c.ObjectLock {
		case "enabled":
		case "unknown":
			all = append(all, fmt.Sprintf("object_lock is configured, but %s does not say whether it locks anything; allow "+
				"s3:GetBucketObjectLockConfiguration", where))
		default:
			all = append(all, fmt.Sprintf("object_lock is configured, but %s has no object lock, so nothing would be protected; use a "+
				"bucket that was made with object lock, or take object_lock out of the configuration", where))
		}
	}
	return all
}
