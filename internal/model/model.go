// Package model holds the plain values that every part of netctl shares: what
// the cluster says, as netip addresses and short strings.
//
// A State is immutable once it is published: nobody may change it or anything
// it points to, so any number of readers may hold it without locks. Objects
// are pointers, so that two States that differ in one object share the rest.
// The package imports the standard library only and does no I/O; it is tested
// on plain values.
package model

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// Name is the namespace and name of an object, which is what Kubernetes
// identifies an object by.
type Name struct {
	Namespace string
	Name      string
}

// String returns "namespace/name".
func (n Name) String() string { return n.Namespace + "/" + n.Name }

// Compare orders names by namespace, then name.
func (n Name) Compare(o Name) int {
	return cmp.Or(cmp.Compare(n.Namespace, o.Namespace), cmp.Compare(n.Name, o.Name))
}

// Protocol is an IP protocol number (IANA, RFC 5237).
type Protocol uint8

// The protocols that netctl tells apart.
const (
	ICMP   Protocol = 1
	TCP    Protocol = 6
	UDP    Protocol = 17
	ICMPv6 Protocol = 58
	SCTP   Protocol = 132
)

// String returns the Kubernetes spelling ("TCP"), or "proto-N".
func (p Protocol) String() string {
	switch p {
	case ICMP:
		return "ICMP"
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case ICMPv6:
		return "ICMPv6"
	case SCTP:
		return "SCTP"
	default:
		return "proto-" + string('0'+byte(p)/100) + string('0'+byte(p)/10%10) + string('0'+byte(p)%10)
	}
}

// State is everything that netctl knows of the cluster at one revision.
// Every slice is sorted by name and immutable.
type State struct {
	// Revision grows by at least one with every published State of a source.
	Revision uint64
	// Synced reports that every kind was listed completely at least once.
	// Before that, absence means nothing (a missing name is not NXDOMAIN).
	Synced bool
	// Heard is when the source heard of the first of the changes since the State
	// before; zero where that is not measured.
	Heard time.Time

	Nodes           []*Node
	Namespaces      []*Namespace
	Pods            []*Pod
	Services        []*Service
	EndpointSlices  []*EndpointSlice
	NetworkPolicies []*NetworkPolicy
	ServiceCIDRs    []netip.Prefix
	Blocks          []Block
	BlockPools      []BlockPool
}

// Node returns the node of that name, or nil.
func (s *State) Node(name string) *Node {
	i, ok := slices.BinarySearchFunc(s.Nodes, name, func(n *Node, name string) int { return cmp.Compare(n.Name, name) })
	if !ok {
		return nil
	}
	return s.Nodes[i]
}

// Namespace returns the namespace of that name, or nil.
func (s *State) Namespace(name string) *Namespace {
	i, ok := slices.BinarySearchFunc(s.Namespaces, name, func(n *Namespace, name string) int { return cmp.Compare(n.Name, name) })
	if !ok {
		return nil
	}
	return s.Namespaces[i]
}

// Service returns the service of that name, or nil.
func (s *State) Service(name Name) *Service {
	i, ok := slices.BinarySearchFunc(s.Services, name, func(o *Service, name Name) int { return o.Name.Compare(name) })
	if !ok {
		return nil
	}
	return s.Services[i]
}

// Pod returns the pod of that name, or nil.
func (s *State) Pod(name Name) *Pod {
	i, ok := slices.BinarySearchFunc(s.Pods, name, func(o *Pod, name Name) int { return o.Name.Compare(name) })
	if !ok {
		return nil
	}
	return s.Pods[i]
}

// NodePrefixes returns the address ranges whose pods run on the named node:
// its podCIDRs and the blocks that it claimed.
func (s *State) NodePrefixes(node string) []netip.Prefix {
	var out []netip.Prefix
	if n := s.Node(node); n != nil {
		out = append(out, n.PodCIDRs...)
	}
	for _, b := range s.Blocks {
		if b.Node == node {
			out = append(out, b.CIDR)
		}
	}
	return out
}

// Node is a machine of the cluster. What it says of itself is a claim, not a
// fact: two nodes may claim one address, and Compile must refuse that.
type Node struct {
	Name      string
	Addresses []netip.Addr     // status.addresses of type InternalIP
	PodCIDRs  []netip.Prefix   // spec.podCIDRs
	Zone      string           // label topology.kubernetes.io/zone
	PublicKey string           // base64 Curve25519 key, annotation netctl.io/public-key; "" before the agent's first start
	Leaving   bool             // being deleted, or tainted as about to be by the cluster autoscaler: load balancers shall go elsewhere
	Excluded  bool             // label node.kubernetes.io/exclude-from-external-load-balancers: it answers for no load balancer
	Endpoints []netip.AddrPort // where its WireGuard listens, annotation netctl.io/endpoints (comma-separated)
}

// Namespace is a Kubernetes namespace.
type Namespace struct {
	Name   string
	Labels map[string]string
}

// Block is a range of pod addresses that one node has claimed for itself.
type Block struct {
	CIDR netip.Prefix
	Node string
}

// BlockPool is a range that nodes claim blocks of pod addresses from. All pods
// of the cluster that have no podCIDR of their node live in these.
type BlockPool struct {
	CIDR netip.Prefix
	Bits int // prefix length of a block
}

// Pod is what netctl needs of a Kubernetes Pod.
type Pod struct {
	Name        Name
	UID         string
	Labels      map[string]string
	Node        string       // spec.nodeName, "" while unscheduled
	Addresses   []netip.Addr // status.podIPs
	Hostname    string       // spec.hostname
	Subdomain   string       // spec.subdomain
	HostNetwork bool
	Terminating bool // deletionTimestamp is set
	Finished    bool // phase Succeeded or Failed: its addresses are no longer its own
	Ports       []ContainerPort
	Bandwidth   Bandwidth
}

// Bandwidth is what a pod's annotations limit its traffic to, in bits per second; 0
// is no limit. Ingress is what it receives.
type Bandwidth struct {
	Ingress, Egress uint64
	// Invalid says which annotations cannot be understood, and why: they are no limit.
	Invalid string
}

// ContainerPort is a declared port of a pod's container; network policies may
// refer to it by name.
type ContainerPort struct {
	Name     string
	Port     uint16
	HostPort uint16
	HostIP   netip.Addr
	Protocol Protocol
}

// ServiceType is spec.type of a Service.
type ServiceType string

// The service types (core/v1).
const (
	ClusterIP    ServiceType = "ClusterIP"
	NodePort     ServiceType = "NodePort"
	LoadBalancer ServiceType = "LoadBalancer"
	ExternalName ServiceType = "ExternalName"
)

// Service is what netctl needs of a Kubernetes Service.
type Service struct {
	Name                Name
	UID                 string
	Type                ServiceType
	ClusterIPs          []netip.Addr // empty when headless or not allocated yet
	Headless            bool         // spec.clusterIP is "None"
	ForeignProxy        bool         // label service.kubernetes.io/service-proxy-name is set
	ExternalName        string
	Ports               []ServicePort
	AffinityTimeout     time.Duration // 0: no session affinity
	InternalLocal       bool          // internalTrafficPolicy is Local
	ExternalLocal       bool          // externalTrafficPolicy is Local
	ExternalIPs         []netip.Addr
	LoadBalancerIPs     []netip.Addr   // status.loadBalancer.ingress with ipMode VIP
	SourceRanges        []netip.Prefix // spec.loadBalancerSourceRanges
	HealthCheckNodePort uint16
	TrafficDistribution string
	PublishNotReady     bool
	Maglev              bool         // annotation netctl.io/balancing: maglev
	LoadBalancerClass   string       // spec.loadBalancerClass
	WantedIPs           []netip.Addr // spec.loadBalancerIP, or annotation netctl.io/load-balancer-ips
	ShareKey            string       // annotation netctl.io/load-balancer-share: services of one key may have one address
}

// ServicePort is one port of a Service. With the service's name, its name and
// protocol are the key that endpoint ports are matched by.
type ServicePort struct {
	Name     string
	Protocol Protocol
	Port     uint16
	NodePort uint16
}

// EndpointSlice is discovery.k8s.io/v1 EndpointSlice.
type EndpointSlice struct {
	Name      Name
	Service   string // label kubernetes.io/service-name
	IPv6      bool   // addressType; FQDN slices never enter a State
	Headless  bool   // label service.kubernetes.io/headless is set: not for the proxy
	Ports     []EndpointPort
	Endpoints []Endpoint
	// Triggered is when what made the controller write it happened, annotation
	// endpoints.kubernetes.io/last-change-trigger-time; zero where it does not say.
	Triggered time.Time
}

// EndpointPort is a port that every endpoint of a slice serves.
type EndpointPort struct {
	Name     string
	Protocol Protocol
	Port     uint16
}

// Endpoint is one backend. Unset conditions have their Kubernetes meaning
// already: ready and serving true, terminating false.
type Endpoint struct {
	Address     netip.Addr // addresses[0]; the rest are ignored by everyone
	Ready       bool
	Serving     bool
	Terminating bool
	Node        string
	Zone        string
	Hostname    string
	Pod         string // targetRef name when its kind is Pod
	HintZones   []string
	HintNodes   []string
}
