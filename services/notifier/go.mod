module github.com/lifeboat-fleet/lifeboat/services/notifier

go 1.26

require github.com/lifeboat-fleet/lifeboat/proto v0.0.0

replace github.com/lifeboat-fleet/lifeboat/proto => ../../proto

require github.com/lifeboat-fleet/lifeboat/fleet v0.0.0

replace github.com/lifeboat-fleet/lifeboat/fleet => ../../fleet
