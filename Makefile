# netctl's interface for the people who work on it. `make` prints the targets.
SHELL := /bin/bash
GO ?= go
GOLANGCI ?= $(GO) run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
GOVULNCHECK ?= $(GO) run golang.org/x/vuln/cmd/govulncheck@v1.1.4
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
FUZZTIME ?= 10s
IMAGE_ARCH ?= amd64,arm64
export CGO_ENABLED ?= 0

.DEFAULT_GOAL := help
.PHONY: help setup build image chart demo test ci ci-rest lint bench bench-dns bench-net bench-restart coredns dns-diff fuzz vuln clean

help: ## print the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install what the demo and the tests need besides Go (Debian's apt)
	@./.ci/setup

build: ## build bin/netctl, with the small CNI plugin embedded
	@$(GO) build -trimpath -ldflags '-s -w' -o cni/bin/netctl-cni ./cni/plugin
	@$(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/netctl ./cmd/netctl

image: ## dist/netctl-image.tar, for amd64 and arm64 (IMAGE_ARCH=amd64: that one alone)
	@$(GO) run ./deploy/image -o dist/netctl-image.tar -arch $(IMAGE_ARCH) -version '$(VERSION)'

chart: ## the Helm chart against the real helm, which is built from source
	@$(GO) build -C deploy/tools -o ../../bin/helm helm.sh/helm/v4/cmd/helm
	@HELM='$(CURDIR)/bin/helm' $(GO) test -count=1 -run Helm ./deploy

demo: setup build ## bring up three nodes on this machine, prove that it works, take them down
	@./bin/netctl lab demo $(ARGS)

test: setup build ## every test, with the race detector
	@CGO_ENABLED=1 $(GO) test -race -timeout 10m ./...

ci: test ci-rest ## all that .ci/run runs: test, lint, fuzz smoke, both builds, tidy check, demos, a real cluster

# The part of ci beside the tests.
ci-rest: lint
	@$(GO) mod tidy -diff
	@for arch in amd64 arm64; do echo "build linux/$$arch" && \
		GOOS=linux GOARCH=$$arch $(GO) build -o /dev/null ./cmd/netctl && \
		GOOS=linux GOARCH=$$arch $(GO) build -o /dev/null ./cni/plugin || exit 1; done
	@./test/fuzz.sh 3s
	@$(MAKE) --no-print-directory demo
	@$(MAKE) --no-print-directory demo ARGS=--dual-stack
	@$(MAKE) --no-print-directory kube-ci

lint: ## formatting, vet and golangci-lint
	@$(GOLANGCI) run ./...

bench: setup build ## every benchmark: figure and ratio lines
	@./test/bench.sh

bench-net: setup build ## every path beside its rivals, in turns: figure and ratio lines; QUICK=1 is short [ARGS='-run REGEXP']
	@$(GO) run ./test/bench -net -docs docs/performance.md $(if $(filter 1,$(QUICK)),-quick) $(ARGS)

bench-restart: setup build ## traffic while agents crash, follow each other, are deleted; QUICK=1 is short [ARGS='-kube -markdown']
	@$(if $(findstring -kube,$(ARGS)),$(MAKE) --no-print-directory image IMAGE_ARCH=$$($(GO) env GOARCH))
	@$(GO) run ./test/restart $(if $(filter 1,$(QUICK)),-quick) $(ARGS)

bench-dns: ## the name server against CoreDNS with kubeadm's plugins, in one run: figure and ratio lines [NETCTL_COREDNS=PATH]
	@$(MAKE) --no-print-directory build coredns
	@$(GO) test -run '^$$' -bench 'Answer|Compile|Memory' ./dns
	@$(GO) test -run '^$$' -bench ResolverPort ./internal/agent
	@NETCTL_COREDNS=$${NETCTL_COREDNS:-$(CURDIR)/bin/coredns} $(GO) run ./test/dns $(ARGS)

dns-diff: coredns ## what the name server and CoreDNS answer to the same questions [NETCTL_COREDNS=PATH]
	@NETCTL_COREDNS=$${NETCTL_COREDNS:-$(CURDIR)/bin/coredns} $(GO) test -count=1 -run CoreDNS -v ./test/dns

coredns:
	@test -n "$$NETCTL_COREDNS" || $(GO) build -C test/dns/coredns -trimpath -ldflags '-s -w' -o $(CURDIR)/bin/coredns .

fuzz: ## run every fuzz target for FUZZTIME (10s)
	@./test/fuzz.sh $(FUZZTIME)

vuln: ## known vulnerabilities in what we call (asks vuln.go.dev)
	@$(GOVULNCHECK) ./...

# The real cluster of test/kube. NAME=... chooses among several; `go run
# ./test/kube help up` explains what UPFLAGS may hold.
KUBE = $(GO) run ./test/kube $(if $(NAME),--name=$(NAME))
NODES ?= 3
CNI ?= netctl
UPFLAGS ?= $(if $(POD_SUBNET),--pod-subnet=$(POD_SUBNET)) $(if $(KUBE_PROXY),--kube-proxy) $(if $(COREDNS),--coredns) \
	$(if $(ZONES),--zones=$(ZONES)) $(if $(KUBELET_IPTABLES),--kubelet-iptables) $(if $(RP_FILTER),--rp-filter=$(RP_FILTER)) $(if $(IP_FORWARD),--ip-forward=$(IP_FORWARD))

kube-build: ## build Kubernetes, containerd and images into the cache
	@$(KUBE) build --e2e

# The image of netctl for this machine, where a cluster will run it.
NETCTL_IMAGE = $(if $(filter netctl,$(CNI)),$(MAKE) --no-print-directory image IMAGE_ARCH=$$($(GO) env GOARCH))

kube-up: ## a real cluster: NODES=3 CNI=netctl|ptp|none [POD_SUBNET= KUBE_PROXY=1 COREDNS=1 NAME=]
	@$(NETCTL_IMAGE)
	@$(KUBE) up --nodes=$(NODES) --cni=$(CNI) $(UPFLAGS)

kube-down: ## remove the real cluster [NAME=]
	@$(KUBE) down

kube-demo: ## the demo on a real cluster: the one that is up, or one for the purpose
	@$(NETCTL_IMAGE)
	@$(KUBE) demo --nodes=$(NODES) --cni=$(CNI) $(UPFLAGS)

kube-smoke: ## a dozen conformance specs on the real cluster
	@$(KUBE) e2e --smoke $(ARGS)

kube-bench: image ## pod starts against the reference plugins, memory and changes at 5000 services: figure and ratio lines [ARGS='-run pods']
	@$(GO) run ./test/kube/speed $(ARGS)

kube-ci: ## a cluster made for it: kube-demo and kube-smoke
	@$(MAKE) --no-print-directory kube-up NAME=ci && $(MAKE) --no-print-directory kube-demo NAME=ci && \
		$(MAKE) --no-print-directory kube-smoke NAME=ci; status=$$?; \
		$(MAKE) --no-print-directory kube-down NAME=ci && exit $$status

e2e: ## Kubernetes' own end-to-end specs: FOCUS='\[sig-network\].*\[Conformance\]' [SKIP= ARGS=]
	@$(KUBE) e2e $(if $(FOCUS),--focus='$(FOCUS)') $(if $(SKIP),--skip='$(SKIP)') $(ARGS)

DAY ?= .*
kube-days: ## bad days on real clusters [DAY=ci|REGEXP NAME= KEEP=1]: what dies, restarts, is replaced
	@$(MAKE) --no-print-directory build image IMAGE_ARCH=$$($(GO) env GOARCH)
	@NETCTL_DAYS='$(DAY)' NETCTL_DAYS_NAME='$(NAME)' NETCTL_DAYS_KEEP='$(KEEP)' $(GO) test -count=1 -v -timeout 90m ./test/kube/days

clean: ## remove what the build made
	@rm -rf bin dist cni/bin/netctl-cni
