//go:build tools

// Package tools names what is built from this module beside the tool lines of
// go.mod: the upstream end-to-end test, which is a test binary.
package tools

import _ "k8s.io/kubernetes/test/e2e"
