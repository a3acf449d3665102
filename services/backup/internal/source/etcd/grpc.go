package etcd

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

const (
	// window is how much a member may send ahead of the reader: more than it sends in a round trip of a private network. With
	// less than a MiB, etcd waits for us; with more, memory grows and nothing else.
	window     = 2 << 20
	readBuffer = 64 << 10
)

// dialOptions are those of every connection.
func dialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		// Left to itself, the client would wait for a member that is down until the time is over, and then say only that.
		grpc.WithChainUnaryInterceptor(failFast), grpc.WithChainStreamInterceptor(failFastStream),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(newCodec())),
		// Left to itself, gRPC lets up to 16 MiB of a snapshot wait for a reader that is slower than etcd.
		grpc.WithInitialWindowSize(window), grpc.WithInitialConnWindowSize(window), grpc.WithReadBufferSize(readBuffer),
	}
}

// failFast has a request to a member that is down fail with the reason.
func failFast(
	ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, next grpc.UnaryInvoker,
	opts ...grpc.CallOption,
) error {
	return next(ctx, method, req, reply, conn, append(opts, grpc.WaitForReady(false))...)
}

// failFastStream is the same for a stream that is opened.
func failFastStream(
	ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, next grpc.Streamer,
	opts ...grpc.CallOption,
) (grpc.ClientStream, error) {
	return next(ctx, desc, conn, method, append(opts, grpc.WaitForReady(false))...)
}

// snapshotMessage is a little more than a message of a snapshot: 32 KiB and what protobuf adds.
const snapshotMessage = 36 << 10

// codec is gRPC's own for protobuf, with buffers that fit. gRPC's pool has sizes of 32 KiB and then of 1 MiB, and clears a
// buffer before each use: as a message of a snapshot is a few bytes longer than 32 KiB, a whole MiB was cleared for each:
// half a nanosecond for every byte of a snapshot, about what its sha256 takes (BenchmarkSnapshot).
type codec struct {
	encoding.CodecV2
	pool mem.BufferPool
}

func newCodec() codec {
	return codec{
		CodecV2: encoding.GetCodecV2(protocodec.Name),
		pool:    mem.NewTieredBufferPool(4<<10, snapshotMessage, 1<<20),
	}
}

// Unmarshal implements encoding.CodecV2.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	if next, ok := v.(*chunk); ok {
		next.buf = data.MaterializeToBuffer(c.pool)
		return next.decode()
	}
	msg, ok := v.(proto.Message)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	buf := data.MaterializeToBuffer(c.pool)
	defer buf.Free()
	return proto.Unmarshal(buf.ReadOnlyData(), msg)
}
