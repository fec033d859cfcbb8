package settings

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/netctl/netctl/internal/model"
)

// The pod ranges of a cluster that names none: kubeadm's customary one, and a
// unique local one (RFC 4193) that reads like it.
const (
	DefaultRange4 = "10.244.0.0/16"
	DefaultRange6 = "fd00:10:244::/56"
)

// HostRange is a range that this host uses for something of its own.
type HostRange struct {
	Prefix netip.Prefix
	What   string // such as "route of docker0"
}

// Surroundings are what pod ranges are chosen among.
type Surroundings struct {
	Node       string       // this one
	State      *model.State // nodes, blocks, pools, services' ranges
	PodSubnets []netip.Prefix
	Host       []HostRange // addresses and routes of this host that are not ours
}

// ConflictError is a default pod range that cannot be used here.
type ConflictError struct {
	Range, Other netip.Prefix
	What         string // what the other one is
}

// Error names both ranges and what to do.
func (e *ConflictError) Error() string {
	return fmt.Sprintf("the default pod range %s and %s (%s) overlap: set clusterCIDRs to a range that is free on every node, or initialise the cluster with a podSubnet",
		e.Range, e.Other, e.What)
}

// PodRanges returns the ranges that hold all pods of the cluster: the configured
// ones, else the cluster's own podSubnet, else its BlockPools', else the defaults
// of the families that its services have.
//
// What somebody chose is used as it is, and what does not fit is left to the
// compiler to report: routes of a former network may well lie in it. A default
// that collides is refused, unless this node has pods in it already, which neither
// a new route of the host nor another node's range may take down. The result is
// empty while the services' ranges are unknown or the pools say it all.
func PodRanges(configured []netip.Prefix, in Surroundings) ([]netip.Prefix, error) {
	switch {
	case len(configured) > 0:
		return configured, nil
	case len(in.PodSubnets) > 0:
		return in.PodSubnets, nil
	case len(in.State.BlockPools) > 0:
		return nil, nil
	}
	var out []netip.Prefix
	for _, text := range []string{DefaultRange4, DefaultRange6} {
		p := netip.MustParsePrefix(text)
		if !slices.ContainsFunc(in.State.ServiceCIDRs, func(s netip.Prefix) bool { return s.Addr().Is4() == p.Addr().Is4() }) {
			continue
		}
		if err := in.collides(p); err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

// collides reports why a default range cannot be used.
func (in *Surroundings) collides(p netip.Prefix) error {
	if slices.ContainsFunc(in.State.NodePrefixes(in.Node), func(own netip.Prefix) bool { return within(own, p) }) {
		return nil // whatever is wrong, pods run in it
	}
	for _, n := range in.State.Nodes {
		for _, assigned := range n.PodCIDRs {
			if assigned.Addr().Is4() == p.Addr().Is4() && !within(assigned, p) {
				return fmt.Errorf("node %s was assigned the pod range %s, which is not in the default %s: set clusterCIDRs to the range that the cluster's nodes are given theirs from",
					n.Name, assigned, p)
			}
		}
	}
	for _, s := range in.State.ServiceCIDRs {
		if s.Overlaps(p) {
			return &ConflictError{Range: p, Other: s, What: "the services' range"}
		}
	}
	for _, n := range in.State.Nodes {
		for _, a := range n.Addresses {
			if p.Contains(a) {
				return &ConflictError{Range: p, Other: netip.PrefixFrom(a, a.BitLen()), What: "the address of node " + n.Name}
			}
		}
	}
	for _, h := range in.Host {
		if h.Prefix.Bits() > 0 && h.Prefix.Overlaps(p) { // a default route is in nobody's way
			return &ConflictError{Range: p, Other: h.Prefix, What: h.What}
		}
	}
	return nil
}

// within reports whether p lies wholly in outer.
func within(p, outer netip.Prefix) bool { return outer.Bits() <= p.Bits() && outer.Contains(p.Addr()) }

// DefaultDomain is the domain of the cluster's names unless anybody says
// otherwise.
const DefaultDomain = "cluster.local"

// Domain returns the domain of the cluster's names: the configured one, else the
// cluster's own, else the usual one.
func Domain(configured, cluster string) string {
	return strings.Trim(cmp.Or(configured, cluster, DefaultDomain), ".")
}

// Cluster is what a cluster says of itself outside its State; zero values where
// it does not say.
type Cluster struct {
	PodSubnets  []netip.Prefix // of kubeadm
	Domain      string         // likewise
	NameServers []netip.Addr   // that kubelets give to pods
}

// Equal reports whether two clusters say the same.
func (c Cluster) Equal(o Cluster) bool {
	return slices.Equal(c.PodSubnets, o.PodSubnets) && c.Domain == o.Domain && slices.Equal(c.NameServers, o.NameServers)
}
