module github.com/lifeboat-fleet/lifeboat/cli

go 1.26

require github.com/lifeboat-fleet/lifeboat/proto v0.0.0

replace github.com/lifeboat-fleet/lifeboat/proto => ../proto

require github.com/lifeboat-fleet/lifeboat/fleet v0.0.0

replace github.com/lifeboat-fleet/lifeboat/fleet => ../fleet

require github.com/lifeboat-fleet/lifeboat/services/scheduler v0.0.0

replace github.com/lifeboat-fleet/lifeboat/services/scheduler => ../services/scheduler

require github.com/lifeboat-fleet/lifeboat/services/backup v0.0.0

replace github.com/lifeboat-fleet/lifeboat/services/backup => ../services/backup

require github.com/lifeboat-fleet/lifeboat/services/notifier v0.0.0

replace github.com/lifeboat-fleet/lifeboat/services/notifier => ../services/notifier
