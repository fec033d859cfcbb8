// Package cluster is where the cluster's state comes in and where a node's own
// facts go out.
//
// A Source turns what it watches into immutable model.State values with rising
// revisions. There are two: Directory reads ordinary Kubernetes manifests from
// a directory, Kubernetes watches an API server. Both use the same converters
// (convert.go), which are pure functions from a Kubernetes object to a model
// value, and the same snapshot. Everything that knows Kubernetes' own Go types
// stays behind this package: nobody else imports k8s.io, and no exported name
// here carries one of its types. The lab therefore reads user manifests and
// writes objects through manifest.go as plain structs.
//
//	files -> decode.go ----> Kubernetes objects -> convert.go -> index.go --+
//	                          (duplicates, patches of nodes)                v
//	                                                         snapshot.go -> State
//	watches -> watch.go ---> Kubernetes objects -> convert.go, intern.go ---^
//
// Invariants: a published State is never changed; objects that did not change
// keep their pointers, so a reader may compare pointers to find what moved; an
// object that is broken never disturbs any other one.
//
// Tests: converters by table, the decoder by table and fuzzing, Directory on
// real directories under t.TempDir, Kubernetes against a server in the test's
// process that misbehaves, and against a real kube-apiserver and etcd where
// their programs are built (else those tests are skipped and say so).
package cluster

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/netctl/netctl/internal/model"
)

// Source yields the cluster's state.
type Source interface {
	// Run calls publish with every new State, from one goroutine, until ctx ends
	// (then it returns nil) or the source is beyond repair. The first State is
	// published only when every kind was read completely once. Run is called
	// once.
	Run(ctx context.Context, publish func(*model.State)) error
}

// NodeClaim is what an agent says of its own node.
type NodeClaim struct {
	Node      string
	PublicKey string           // base64 Curve25519 key
	Endpoints []netip.AddrPort // where its WireGuard listens
}

// The annotations of a Node object that carry a NodeClaim.
const (
	annotationPublicKey = "netctl.io/public-key"
	annotationEndpoints = "netctl.io/endpoints"
)

// Problem is something in a manifest that was left out of the State.
type Problem struct {
	File string // path relative to the source's directory, or the name given
	Line int    // 1-based; 0 when the whole file is meant
	Text string // what is wrong, lower case
}

// Error returns "file:line: text", so a Problem is an error, too.
func (p Problem) Error() string {
	if p.Line == 0 {
		return p.File + ": " + p.Text
	}
	return fmt.Sprintf("%s:%d: %s", p.File, p.Line, p.Text)
}
