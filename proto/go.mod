module github.com/lifeboat-fleet/lifeboat/proto

go 1.26

require google.golang.org/protobuf v1.36.12
