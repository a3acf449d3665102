package testbed

import (
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"strings"
)

const (
	// apps are the workloads that all pods belong to: what their pods have in common is the same in each.
	apps = 400
	// releaseEvery: one object of so many is a release of a packaging tool, which is compressed already.
	releaseEvery = 32
)

// object is a key and value as Kubernetes keeps them in etcd. Replicas of an app share its image, settings and managed fields;
// each pod has its own name, ids, times and addresses.
func object(r *rand.Rand, i int) (key, value string) {
	if i%releaseEvery == releaseEvery-1 {
		b := make([]byte, 2500+r.IntN(2000))
		for j := range b {
			b[j] = byte(r.UintN(256)) //nolint:gosec // below 256
		}
		return fmt.Sprintf("/registry/secrets/team-%d/release-%08d", i%50, i),
			`{"kind":"Secret","apiVersion":"v1","metadata":{"name":"release"},"data":{"release":"` + base64.StdEncoding.EncodeToString(b) + `"}}`
	}
	return fmt.Sprintf("/registry/pods/team-%d/web-%08d", i%50, i), pod(r)
}

func pod(r *rand.Rand) string {
	n := r.IntN(apps)
	app := rand.New(rand.NewPCG(uint64(n), 5)) //nolint:gosec // test data
	template, owner, image := fmt.Sprintf("%010x", app.Uint64()>>24), uid(app), hash(app)
	var b strings.Builder
	fmt.Fprintf(&b, `{"kind":"Pod","apiVersion":"v1","metadata":{"name":"app-%d-%s-%05x","generateName":"app-%d-%s-","namespace":"team-%d",`+
		`"uid":"%s","resourceVersion":"%d","creationTimestamp":"%s","labels":{"app.kubernetes.io/name":"app-%d","pod-template-hash":"%s"},`+
		`"ownerReferences":[{"apiVersion":"apps/v1","kind":"ReplicaSet","name":"app-%d-%s","uid":"%s","controller":true,"blockOwnerDeletion":true}],`,
		n, template, r.Uint32()>>12, n, template, n%50, uid(r), r.Uint32(), stamp(r), n, template, n, template, owner)
	for _, manager := range []string{"kube-controller-manager", "kubelet"} {
		fmt.Fprintf(&b, `"managedFields":[{"manager":"%s","operation":"Update","apiVersion":"v1","time":"%s","fieldsType":"FieldsV1","fieldsV1":`+
			`{"f:metadata":{"f:generateName":{},"f:labels":{".":{},"f:app.kubernetes.io/name":{},"f:pod-template-hash":{}},"f:ownerReferences":{".":{},`+
			`"k:{\"uid\":\"%s\"}":{}}},"f:spec":{"f:containers":{"k:{\"name\":\"app\"}":{".":{},"f:env":{".":{}},"f:image":{},"f:imagePullPolicy":{},`+
			`"f:name":{},"f:resources":{".":{},"f:limits":{".":{},"f:cpu":{},"f:memory":{}}},"f:terminationMessagePath":{}}},"f:dnsPolicy":{}}}}],`,
			manager, stamp(r), owner)
	}
	fmt.Fprintf(&b, `"finalizers":[]},"spec":{"volumes":[{"name":"kube-api-access-%05x","projected":{"sources":[{"serviceAccountToken":{"expirationSeconds":3607,`+
		`"path":"token"}},{"configMap":{"name":"kube-root-ca.crt","items":[{"key":"ca.crt","path":"ca.crt"}]}}],"defaultMode":420}}],"containers":[{"name":"app",`+
		`"image":"registry.example.com/app-%d@sha256:%s","resources":{"limits":{"cpu":"%dm","memory":"%dMi"}},"env":[`,
		r.Uint32()>>12, n, image, 100*(1+app.IntN(20)), 128*(1+app.IntN(32)))
	for k := range 8 {
		fmt.Fprintf(&b, `{"name":"SETTING_%d","value":"%016x"},`, k, app.Uint64())
	}
	fmt.Fprintf(&b, `{"name":"POD_IP","valueFrom":{"fieldRef":{"apiVersion":"v1","fieldPath":"status.podIP"}}}]}],"nodeName":"node-%d",`+
		`"restartPolicy":"Always","terminationGracePeriodSeconds":30,"schedulerName":"default-scheduler"},"status":{"phase":"Running","conditions":[`, r.IntN(40))
	for _, c := range []string{"Initialized", "Ready", "ContainersReady", "PodScheduled"} {
		fmt.Fprintf(&b, `{"type":"%s","status":"True","lastProbeTime":null,"lastTransitionTime":"%s"},`, c, stamp(r))
	}
	fmt.Fprintf(&b, `{"type":"Last"}],"hostIP":"10.0.%d.%d","podIP":"10.244.%d.%d","startTime":"%s","containerStatuses":[{"name":"app","ready":true,`+
		`"restartCount":%d,"image":"registry.example.com/app-%d@sha256:%s","containerID":"containerd://%s"}],"qosClass":"Burstable"}}`,
		r.IntN(4), r.IntN(256), r.IntN(256), r.IntN(256), stamp(r), r.IntN(9), n, image, hash(r))
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
