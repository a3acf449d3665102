# Lifeboat. `make` alone lists the targets.
SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

MODULES := proto fleet services/scheduler services/backup services/notifier cli tests
# What `make run` and `make demo` back up. KINDS=etcd needs no server to be built.
KINDS ?= etcd consul nomad
# Asked once: a commit that comes while make runs does not make the parts of a release differ.
VERSION := $(or $(VERSION),$(shell git describe --tags --always --dirty 2>/dev/null || echo dev))
COMMIT := $(or $(COMMIT),$(shell git rev-parse HEAD 2>/dev/null))
# The commit's date, not the build's: two builds of one commit are the same bytes.
DATE := $(or $(DATE),$(shell TZ=UTC0 git show -s --format=%cd --date=format-local:%Y-%m-%dT%H:%M:%SZ HEAD 2>/dev/null))
STAMP := github.com/lifeboat-fleet/lifeboat/fleet/service
LDFLAGS := -s -w -X $(STAMP).version=$(VERSION) -X $(STAMP).commit=$(COMMIT) -X $(STAMP).date=$(DATE)
DIST ?= dist
# tools/dist, tools/images and tools/sbom take these from the environment.
export VERSION COMMIT DATE DIST
comma := ,
empty :=
space := $(empty) $(empty)
KINDS_LIST := $(subst $(space),$(comma),$(strip $(subst $(comma),$(space),$(KINDS))))
# The real servers that the chosen kinds need, and Alertmanager, which the demo sends an alert through.
SERVERS := $(filter consul nomad,$(subst $(comma),$(space),$(KINDS)))

.PHONY: help
help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: run
run: .bin/lifeboat ## Run the fleet on embedded servers with sample data, until Ctrl-C (KINDS=etcd starts in seconds)
	@if [ -n "$(SERVERS)" ]; then tools/build $(SERVERS) alertmanager; fi
	@exec .bin/lifeboat up --kinds $(KINDS_LIST)

.PHONY: demo
demo: .bin/lifeboat ## The same without a person: everything happens once, and a table says so
	@tools/build $(SERVERS) alertmanager
	@.bin/lifeboat demo --kinds $(KINDS_LIST)

.PHONY: test
test: ## Every test but the slow ones; builds the real servers on first use
	@tools/build consul nomad alertmanager amtool nats-server etcd etcdctl etcdutl nats promtool
	@for m in $(MODULES); do echo "== $$m"; (cd $$m && go test -race -p 1 -timeout 15m ./...); done

.PHONY: test-ci
test-ci: ## The same for CI: a test that fails runs once more and is named in the end, unless it found a race or is one of more than three
	@tools/build consul nomad alertmanager amtool nats-server etcd etcdctl etcdutl nats promtool gotestsum
	@for m in $(MODULES); do echo "== $$m"; (cd $$m && $(CURDIR)/.bin/gotestsum --format standard-quiet --hide-summary skipped \
		--rerun-fails=1 --rerun-fails-max-failures=3 --rerun-fails-abort-on-data-race --packages ./... -- -race -p 1 -timeout 15m); done

.PHONY: e2e
e2e: ## The slow tests: the whole demo on real Consul and Nomad, and services killed as processes
	@tools/build syft goreleaser consul nomad alertmanager amtool nats-server etcd etcdctl etcdutl docker-compose versitygw nats promtool vault traefik
	@cd tests && go test -tags e2e -count 1 -p 1 -timeout 30m -v ./...

.PHONY: e2e-release
e2e-release: ## Images on a Docker engine of the tests' own (as root), bills of materials, and GoReleaser's configuration
	@tools/build etcd syft goreleaser
	@cd tests && go test -tags e2e -count 1 -timeout 20m -v ./release

.PHONY: e2e-nomad
e2e-nomad: ## The Nomad jobs on a real Nomad, Consul, Vault and Traefik (as root): README's commands, the walk, changes under way, a rolling update
	@tools/build consul nomad alertmanager nats-server vault traefik
	@cd tests && go test -tags e2e -count 1 -timeout 20m -v ./nomad

.PHONY: e2e-compose
e2e-compose: ## README's chapter on compose, walked on a Docker engine (its own, if there is none and this is root)
	@tools/build docker-compose versitygw nats consul nomad alertmanager amtool nats-server etcd
	@cd tests && go test -tags e2e -count 1 -timeout 20m -v ./compose

.PHONY: chaos
chaos: ## Some five minutes of faults of every part of a fleet, and an account of every tick (CHAOS_SEED=n repeats a choice of faults)
	@tools/build nats-server etcd
	@cd tests && go test ./chaos && go test -tags chaos -count 1 -timeout 20m -run TestChaos -v ./chaos

.PHONY: bench
bench: ## Benchmarks of the hot paths, each beside the raw limit it is compared with
	@cd services/backup && go test -run '^$$' -bench . -benchmem -count 3 ./internal/pipeline
	@cd fleet && go test -run '^$$' -bench . -benchmem -count 3 ./bus
	@$(MAKE) bench-snapshot
	@$(MAKE) bench-drill
	@$(MAKE) bench-scheduler
	@$(MAKE) bench-notifier

.PHONY: bench-snapshot
bench-snapshot: .bin/lifeboat ## A snapshot against the raw stream and the stock tools: time, memory, bytes (SIZE_MIB=1024)
	@tools/build etcd etcdctl consul nats-server
	@cd tests && go run ./bench/snapshot -size-mib $(or $(SIZE_MIB),1024) -lifeboat ../.bin/lifeboat

.PHONY: bench-drill
bench-drill: .bin/lifeboat ## A drill and a restore against the stock tools that do the same: time, memory (SIZE_MIB=1024)
	@tools/build etcd etcdutl consul nats-server
	@cd tests && go run ./bench/drill -size-mib $(or $(SIZE_MIB),1024) -lifeboat ../.bin/lifeboat

.PHONY: bench-scheduler
bench-scheduler: .bin/lifeboat ## Ticks, jobs and 100,000 targets against raw NATS: rates, latency, memory, processor (MANY=100000)
	@tools/build nats-server
	@cd tests && go run ./bench/scheduler -many $(or $(MANY),100000) -lifeboat ../.bin/lifeboat

.PHONY: bench-notifier
bench-notifier: .bin/lifeboat ## Webhooks to chat against raw NATS: rate, latency, and a storm of 10,000 alerts with the chats' limits
	@tools/build nats-server
	@cd tests && go run ./bench/notifier -lifeboat ../.bin/lifeboat

.PHONY: fuzz
fuzz: ## Fuzz every parser for FUZZTIME each (default 20s)
	@tools/fuzz $(or $(FUZZTIME),20s)

.PHONY: lint
lint: ## golangci-lint over every module, go vet over the workspace, buf lint
	@tools/build golangci-lint buf
	@for m in $(MODULES); do echo "== $$m"; (cd $$m && go vet ./... && $(CURDIR)/.bin/golangci-lint run --timeout 15m ./...); done
	@cd proto && ../.bin/buf lint

.PHONY: verify
verify: ## Generated code, go.mod files and builds without the workspace are as committed
	@tools/build buf protoc-gen-go
	@tools/verify $(MODULES)

.PHONY: generate
generate: ## Generate the Go code of the contracts
	@tools/build buf protoc-gen-go
	@cd proto && ../.bin/buf generate

.PHONY: metrics
metrics: ## Write docs/metrics.md from what the services register
	@cd cli && go test ./internal/metricsdoc -timeout 60s -run TestTable -update

.PHONY: tools
tools: ## Build every tool and server into .bin/
	@tools/build consul nomad alertmanager amtool nats-server nats etcd etcdctl etcdutl golangci-lint buf protoc-gen-go promtool

.PHONY: build
build: .bin/lifeboat ## Build the binaries into .bin/
	@for s in scheduler backup notifier; do (cd services/$$s && CGO_ENABLED=0 go build -trimpath -ldflags "$(LDFLAGS)" -o ../../.bin/lifeboat-$$s .); done

.PHONY: print-version
print-version: ## The version that binaries and images are stamped with
	@echo $(VERSION)

.PHONY: dist
dist: ## Build the binaries of a release into dist/: static, stamped, and the same bytes wherever they are built
	@tools/dist $(DIST)

.PHONY: images
images: dist ## Build every image from scratch with the Docker engine at hand, and etcd's: lifeboat-fleet/NAME:VERSION
	@tools/build etcd
	@tools/images

.PHONY: sbom
sbom: dist ## What is linked into each binary of dist/, as CycloneDX: dist/NAME.cdx.json
	@tools/build syft
	@tools/sbom $(DIST)

.PHONY: release-check
release-check: ## Check .goreleaser.yaml, and build this platform's binaries from it without publishing
	@tools/build goreleaser
	@.bin/goreleaser check
	@.bin/goreleaser build --snapshot --clean --single-target

.PHONY: .bin/lifeboat
.bin/lifeboat:
	@mkdir -p .bin
	@cd cli && CGO_ENABLED=0 go build -trimpath -ldflags "$(LDFLAGS)" -o ../.bin/lifeboat .
