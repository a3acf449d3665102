package etcd

import (
	"context"
	"fmt"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// receiver reads the stream of a snapshot. The client's own SnapshotWithVersion copies every message twice more and hands it
// over through a pipe: on two cores that was an eighth of the processor time of a whole snapshot. The connection, with its
// credentials and retries, is the client's.
type receiver struct {
	stream grpc.ClientStream
	chunk  chunk
}

// chunk is one SnapshotResponse. Its blob stays where gRPC has put it, until the next one.
type chunk struct {
	buf     mem.Buffer
	blob    []byte
	version string
}

// What etcd's rpc.proto calls Maintenance.Snapshot, and the fields of a SnapshotResponse that matter here.
const (
	snapshotMethod = "/etcdserverpb.Maintenance/Snapshot"
	fieldBlob      = 3
	fieldVersion   = 4
)

// receive opens a snapshot and waits for its first message. The context ends the stream.
func receive(ctx context.Context, conn *grpc.ClientConn) (*receiver, error) {
	desc := &grpc.StreamDesc{StreamName: "Snapshot", ServerStreams: true}
	stream, err := conn.NewStream(ctx, desc, snapshotMethod, grpc.ForceCodecV2(newCodec()))
	if err != nil {
		return nil, err
	}
	if err := stream.SendMsg(&etcdserverpb.SnapshotRequest{}); err != nil {
		return nil, err
	}
	if err := stream.CloseSend(); err != nil {
		return nil, err
	}
	r := &receiver{stream: stream}
	return r, r.next()
}

// version is the storage version that the first message names; empty before etcd 3.6.
func (r *receiver) version() string { return r.chunk.version }

func (r *receiver) next() error {
	if r.chunk.buf != nil {
		r.chunk.buf.Free()
	}
	r.chunk = chunk{}
	return r.stream.RecvMsg(&r.chunk)
}

// Read implements io.Reader.
func (r *receiver) Read(p []byte) (int, error) {
	for len(r.chunk.blob) == 0 {
		if err := r.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.chunk.blob)
	r.chunk.blob = r.chunk.blob[n:]
	return n, nil
}

// decode finds what matters in the message that buf holds.
func (c *chunk) decode() error {
	for b := c.buf.ReadOnlyData(); len(b) > 0; {
		number, kind, tag := protowire.ConsumeTag(b)
		if tag < 0 {
			return fmt.Errorf("decoding a message of the snapshot: %w", protowire.ParseError(tag))
		}
		b = b[tag:]
		var n int
		switch {
		case number == fieldBlob && kind == protowire.BytesType:
			c.blob, n = protowire.ConsumeBytes(b)
		case number == fieldVersion && kind == protowire.BytesType:
			c.version, n = protowire.ConsumeString(b)
		default:
			n = protowire.ConsumeFieldValue(number, kind, b)
		}
		if n < 0 {
			return fmt.Errorf("decoding a message of the snapshot: %w", protowire.ParseError(n))
		}
		b = b[n:]
	}
	return nil
}
