// Package policy says whether two endpoints may talk. A Table is compiled from
// the cluster's network policies and never edited; the packet walk asks it once
// for the sending end of a new flow and once for the receiving end, and again
// when an endpoint's Generation has moved.
//
// Today's Table isolates nobody: every endpoint is in the default state that
// NetworkPolicy v1 gives a pod that no policy selects, which is to allow
// everything. Compile refuses to hide that: it returns a Problem for every
// policy that it does not enforce.
//
// The package is pure and tested on plain values.
package policy

import (
	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/packet"
)

// Verdict is what a Table says of one direction of a flow.
type Verdict uint8

// The verdicts.
const (
	Allow Verdict = iota + 1
	Deny
)

// String returns the verdict as logs and traces print it.
func (v Verdict) String() string {
	switch v {
	case Allow:
		return "allow"
	case Deny:
		return "deny"
	default:
		return "none"
	}
}

// Problem is a policy that the Table does not enforce.
type Problem struct {
	Policy model.Name
	Reason string
}

// Table judges flows. It is immutable and safe for concurrent use.
type Table struct{}

// Compile builds the Table of a State. It is pure.
func Compile(policies []*model.NetworkPolicy) (*Table, []Problem) {
	var problems []Problem
	for _, p := range policies {
		problems = append(problems, Problem{Policy: p.Name, Reason: "network policies are not enforced by this version; its pods stay open"})
	}
	return &Table{}, problems
}

// Generation changes when a verdict about the endpoint with this address may
// change. It depends on content only.
func (t *Table) Generation(packet.Addr) uint32 { return 1 }

// Egress judges a flow that the local endpoint flow.Src opens. The tuple is
// the translated one: policies speak of backends, never of virtual addresses.
func (t *Table) Egress(*packet.Tuple) Verdict { return Allow }

// Ingress judges a flow that reaches the local endpoint flow.Dst.
func (t *Table) Ingress(*packet.Tuple) Verdict { return Allow }
