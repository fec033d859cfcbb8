package model

import "net/netip"

// NetworkPolicy is networking.k8s.io/v1 NetworkPolicy.
type NetworkPolicy struct {
	Name     Name
	Pods     Selector
	Ingress  []PolicyRule // meaningful when Isolates ingress
	Egress   []PolicyRule // meaningful when Isolates egress
	Isolates struct{ Ingress, Egress bool }
}

// PolicyRule allows traffic with any of Peers on any of Ports. An empty list
// matches everything.
type PolicyRule struct {
	Peers []PolicyPeer
	Ports []PolicyPort
}

// PolicyPeer is an address range, or pods chosen by labels. A nil selector is
// absent, which is not the same as one that matches everything.
type PolicyPeer struct {
	CIDR       netip.Prefix
	Except     []netip.Prefix
	Namespaces *Selector
	Pods       *Selector
}

// PolicyPort is a port, a named port or, with End, a range of ports.
type PolicyPort struct {
	Protocol Protocol
	Name     string
	Port     uint16 // 0: every port
	End      uint16
}

// Selector is a metav1.LabelSelector. The zero value matches everything.
type Selector struct {
	MatchLabels map[string]string
	Expressions []SelectorExpression
}

// SelectorExpression is one requirement of a Selector; Operator is In, NotIn,
// Exists or DoesNotExist.
type SelectorExpression struct {
	Key      string
	Operator string
	Values   []string
}
