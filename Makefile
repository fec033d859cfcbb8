# netctl's interface for people who work on it. `make` prints this list.
SHELL := /bin/bash
GO ?= go
GOLANGCI ?= $(GO) run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
GOVULN ?= $(GO) run golang.org/x/vuln/cmd/govulncheck@latest
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
FUZZTIME ?= 10s
export CGO_ENABLED ?= 0

.DEFAULT_GOAL := help
.PHONY: help setup build demo test ci lint bench fuzz clean

help: ## print the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install what the demo and the tests need besides Go (Debian: iproute2, iperf3)
	@./.ci/setup

build: ## build bin/netctl, with the small CNI plugin embedded
	@$(GO) build -trimpath -ldflags '-s -w' -o cni/bin/netctl-cni ./cni/plugin
	@$(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/netctl ./cmd/netctl

demo: setup build ## bring up three nodes on this machine, prove that it works, take them down
	@./bin/netctl lab demo $(ARGS)

test: setup build ## the quick suite: unit, property and lab tests, with -race where threads meet
	@CGO_ENABLED=1 $(GO) test -race -timeout 8m ./...

lint: ## formatting, vet and golangci-lint
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "not gofmt-clean:"; gofmt -l $$(git ls-files '*.go'); exit 1; }
	@$(GO) vet ./...
	@$(GOLANGCI) run ./...

fuzz: ## run every fuzz target for FUZZTIME (default 10s)
	@./test/fuzz.sh $(FUZZTIME)

bench: setup build ## every benchmark: figure and ratio lines
	@./test/bench.sh

ci: lint test fuzz ## all that CI runs
	@$(GO) mod tidy -diff
	@GOARCH=arm64 $(GO) build -o /dev/null ./cmd/netctl
	@$(MAKE) --no-print-directory demo
	@$(MAKE) --no-print-directory demo ARGS=--dual-stack

clean: ## remove what the build made
	@rm -rf bin dist cni/bin/netctl-cni
