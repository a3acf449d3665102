#!/bin/sh
# What a person would write who rehearses a restore with the stock tools alone. It ends when the restored etcd answers, which
# then goes on running.
set -eu
rclone copyto --s3-no-check-bucket "s3:$OBJECT" snapshot.db.zst.age
age -d -i "$IDENTITY_FILE" snapshot.db.zst.age | zstd -q -d -o snapshot.db
etcdutl snapshot restore snapshot.db --data-dir data > etcdutl.log 2>&1
etcd --data-dir data --quota-backend-bytes 8589934592 --log-level error \
  --listen-client-urls "$ENDPOINT" --advertise-client-urls "$ENDPOINT" --listen-peer-urls "$PEER" > etcd.log 2>&1 &
echo $! > etcd.pid
# /health is a read through raft.
until curl -fs -o /dev/null "$ENDPOINT/health"; do
  kill -0 $! || { cat etcd.log >&2; exit 1; }
  sleep 0.02
done
