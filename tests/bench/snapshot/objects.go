package main

import (
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"strings"
)

// releaseEvery: one object of so many does not compress.
const releaseEvery = 32

// object is a key and value as Kubernetes keeps them in etcd: pods, and now and then a release of a packaging tool, which is
// compressed already. All that differs between real ones differs here: names, ids, times, addresses.
func object(r *rand.Rand, i int) (key, value string) {
	if i%releaseEvery == releaseEvery-1 {
		b := make([]byte, 2500+r.IntN(2000))
		for j := range b {
			b[j] = byte(r.Uint32())
		}
		return fmt.Sprintf("/registry/secrets/team-%d/release-%08d", i%50, i),
			`{"kind":"Secret","apiVersion":"v1","metadata":{"name":"release"},"data":{"release":"` + base64.StdEncoding.EncodeToString(b) + `"}}`
	}
	return fmt.Sprintf("/registry/pods/team-%d/web-%08d", i%50, i), pod(r, i)
}

func pod(r *rand.Rand, i int) string {
	var b strings.Builder
	fmt.Fprintf(&b, `{"kind":"Pod","apiVersion":"v1","metadata":{"name":"web-%d-%08x","namespace":"team-%d","uid":"%s",`+
		`"resourceVersion":"%d","creationTimestamp":"%s","labels":{"app":"web-%d","pod-template-hash":"%08x"},"ownerReferences":[`+
		`{"apiVersion":"apps/v1","kind":"ReplicaSet","name":"web-%d","uid":"%s","controller":true,"blockOwnerDeletion":true}]},`,
		i, r.Uint32(), i%50, uid(r), r.Uint32(), stamp(r), r.IntN(500), r.Uint32(), r.IntN(500), uid(r))
	fmt.Fprintf(&b, `"spec":{"volumes":[{"name":"kube-api-access-%08x","projected":{"sources":[{"serviceAccountToken":`+
		`{"expirationSeconds":3607,"path":"token"}}]}}],"containers":[{"name":"web","image":"registry.example.com/web@sha256:%s",`+
		`"resources":{"limits":{"cpu":"%dm","memory":"%dMi"}},"env":[`, r.Uint32(), hash(r), r.IntN(4000), r.IntN(8000))
	for k := range 12 {
		fmt.Fprintf(&b, `{"name":"SETTING_%d","value":"%016x"},`, k, r.Uint64())
	}
	fmt.Fprintf(&b, `{"name":"LAST","value":"1"}]}],"nodeName":"node-%d"},"status":{"phase":"Running","conditions":[`, r.IntN(40))
	for _, c := range []string{"Initialized", "Ready", "ContainersReady", "PodScheduled"} {
		fmt.Fprintf(&b, `{"type":"%s","status":"True","lastProbeTime":null,"lastTransitionTime":"%s"},`, c, stamp(r))
	}
	fmt.Fprintf(&b, `{"type":"Last"}],"hostIP":"10.0.%d.%d","podIP":"10.244.%d.%d","startTime":"%s","containerStatuses":[{"name":"web",`+
		`"ready":true,"restartCount":%d,"containerID":"containerd://%s"}]}}`,
		r.IntN(256), r.IntN(256), r.IntN(256), r.IntN(256), stamp(r), r.IntN(9), hash(r))
	return b.String()
}

func uid(r *rand.Rand) string {
	return fmt.Sprintf("%08x-%04x-4%03x-%04x-%012x", r.Uint32(), r.Uint32()&0xffff, r.Uint32()&0xfff, r.Uint32()&0xffff, r.Uint64()&0xffffffffffff)
}

func hash(r *rand.Rand) string {
	return fmt.Sprintf("%016x%016x%016x%016x", r.Uint64(), r.Uint64(), r.Uint64(), r.Uint64())
}

func stamp(r *rand.Rand) string {
	return fmt.Sprintf("2026-11-%02dT%02d:%02d:%02dZ", 1+r.IntN(20), r.IntN(24), r.IntN(60), r.IntN(60))
}
