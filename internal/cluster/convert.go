package cluster

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/netctl/netctl/internal/model"
)

// The converters are pure: a Kubernetes object in, a model value out. They
// share nothing with the object but strings and label maps, which nobody may
// change afterwards. A field that cannot be understood fails the whole object,
// with every such field named: half of a policy or of a service would be worse
// than none. Addresses are unmapped here, once.

// errIgnored is returned for an object that is valid but never enters a State.
var errIgnored = errors.New("not used by netctl")

// convertNode converts a Node. A malformed claim of the agent's (the
// annotations) does not take the node's addresses with it, but it is an error.
func convertNode(o *corev1.Node) (*model.Node, error) {
	var c collector
	n := &model.Node{
		Name:      o.Name,
		Zone:      o.Labels[corev1.LabelTopologyZone],
		PublicKey: o.Annotations[annotationPublicKey],
		Endpoints: c.endpoints(o.Annotations[annotationEndpoints]),
	}
	n.Leaving = o.DeletionTimestamp != nil || slices.ContainsFunc(o.Spec.Taints, func(t corev1.Taint) bool { return t.Key == taintLeaving })
	_, n.Excluded = o.Labels[corev1.LabelNodeExcludeBalancers] // whatever it says
	for _, a := range o.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			n.Addresses = c.addr(n.Addresses, "status.addresses", a.Address)
		}
	}
	cidrs := o.Spec.PodCIDRs
	if len(cidrs) == 0 && o.Spec.PodCIDR != "" {
		cidrs = []string{o.Spec.PodCIDR}
	}
	for _, s := range cidrs {
		n.PodCIDRs = c.prefix(n.PodCIDRs, "spec.podCIDRs", s)
	}
	return n, c.err()
}

// What a Service's annotations ask for.
const (
	annotationBalancing = "netctl.io/balancing"
	annotationWanted    = "netctl.io/load-balancer-ips"
	annotationShare     = "netctl.io/load-balancer-share"
)

// taintLeaving is what the cluster autoscaler sets on nodes that it removes.
const taintLeaving = "ToBeDeletedByClusterAutoscaler"

// nodePatch is what a patch file adds to a Node; nil leaves the Node's own.
type nodePatch struct {
	node      string
	publicKey *string
	endpoints *[]netip.AddrPort
}

// apply returns n with the patch merged over it; n itself is not changed.
func (p *nodePatch) apply(n *model.Node) *model.Node {
	out := *n
	if p.publicKey != nil {
		out.PublicKey = *p.publicKey
	}
	if p.endpoints != nil {
		out.Endpoints = *p.endpoints
	}
	return &out
}

// convertNodePatch converts the partial Node of a patch file.
func convertNodePatch(o *corev1.Node) (*nodePatch, error) {
	var c collector
	p := &nodePatch{node: o.Name}
	if s, ok := o.Annotations[annotationPublicKey]; ok {
		p.publicKey = &s
	}
	if s, ok := o.Annotations[annotationEndpoints]; ok {
		e := c.endpoints(s)
		p.endpoints = &e
	}
	return p, c.err()
}

// convertNamespace converts a Namespace. The API server labels every namespace
// with its name; a manifest need not, and policies select by that label.
func convertNamespace(o *corev1.Namespace) (*model.Namespace, error) {
	labels := make(map[string]string, len(o.Labels)+1)
	maps.Copy(labels, o.Labels)
	labels[corev1.LabelMetadataName] = o.Name
	return &model.Namespace{Name: o.Name, Labels: labels}, nil
}

// convertPod converts a Pod.
func convertPod(o *corev1.Pod) (*model.Pod, error) {
	var c collector
	p := &model.Pod{
		Name:        nameOf(o),
		UID:         string(o.UID),
		Labels:      o.Labels,
		Node:        o.Spec.NodeName,
		Hostname:    o.Spec.Hostname,
		Subdomain:   o.Spec.Subdomain,
		HostNetwork: o.Spec.HostNetwork,
		Terminating: o.DeletionTimestamp != nil,
		Finished:    o.Status.Phase == corev1.PodSucceeded || o.Status.Phase == corev1.PodFailed,
		Bandwidth:   convertBandwidth(o.Annotations),
	}
	for _, ip := range o.Status.PodIPs {
		p.Addresses = c.addr(p.Addresses, "status.podIPs", ip.IP)
	}
	if len(o.Status.PodIPs) == 0 && o.Status.PodIP != "" {
		p.Addresses = c.addr(p.Addresses, "status.podIP", o.Status.PodIP)
	}
	for _, ctr := range servingContainers(&o.Spec) {
		for _, cp := range ctr.Ports {
			port := model.ContainerPort{
				Name:     cp.Name,
				Port:     c.port("containerPort", cp.ContainerPort),
				HostPort: c.port("hostPort", cp.HostPort),
				Protocol: c.protocol(cp.Protocol),
			}
			if cp.HostIP != "" {
				port.HostIP = c.oneAddr("hostIP", cp.HostIP)
			}
			p.Ports = append(p.Ports, port)
		}
	}
	return p, c.err()
}

// servingContainers returns the containers whose ports are the pod's: the
// ordinary ones and sidecars (init containers that are restarted always).
func servingContainers(spec *corev1.PodSpec) []corev1.Container {
	out := slices.Clone(spec.Containers)
	for _, ctr := range spec.InitContainers {
		if ctr.RestartPolicy != nil && *ctr.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			out = append(out, ctr)
		}
	}
	return out
}

// convertService converts a Service.
func convertService(o *corev1.Service) (*model.Service, error) {
	var c collector
	_, foreign := o.Labels["service.kubernetes.io/service-proxy-name"]
	s := &model.Service{
		Name:            nameOf(o),
		UID:             string(o.UID),
		Type:            model.ServiceType(cmp.Or(o.Spec.Type, corev1.ServiceTypeClusterIP)),
		Headless:        o.Spec.ClusterIP == corev1.ClusterIPNone,
		ForeignProxy:    foreign,
		ExternalName:    o.Spec.ExternalName,
		InternalLocal:   o.Spec.InternalTrafficPolicy != nil && *o.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal,
		ExternalLocal:   o.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal,
		PublishNotReady: o.Spec.PublishNotReadyAddresses,
	}
	switch s.Type {
	case model.ClusterIP, model.NodePort, model.LoadBalancer, model.ExternalName:
	default:
		c.fail("spec.type %q is unknown", s.Type)
	}
	for _, ip := range clusterIPs(o) {
		if ip == corev1.ClusterIPNone {
			s.Headless = true
			continue
		}
		s.ClusterIPs = c.addr(s.ClusterIPs, "spec.clusterIPs", ip)
	}
	for _, p := range o.Spec.Ports {
		s.Ports = append(s.Ports, model.ServicePort{
			Name:     p.Name,
			Protocol: c.protocol(p.Protocol),
			Port:     c.port("spec.ports.port", p.Port),
			NodePort: c.port("spec.ports.nodePort", p.NodePort),
		})
	}
	s.AffinityTimeout = affinity(o, &c)
	s.HealthCheckNodePort = c.port("spec.healthCheckNodePort", o.Spec.HealthCheckNodePort)
	if o.Spec.TrafficDistribution != nil {
		s.TrafficDistribution = *o.Spec.TrafficDistribution
	}
	switch b := o.Annotations[annotationBalancing]; b {
	case "", "random":
	case "maglev":
		s.Maglev = true
	default:
		c.fail("annotation %s %q: use random or maglev", annotationBalancing, b)
	}
	convertServiceExternals(o, s, &c)
	return s, c.err()
}

// clusterIPs returns spec.clusterIPs, or spec.clusterIP of an object from
// before that field. An ExternalName service has none, whatever is written.
func clusterIPs(o *corev1.Service) []string {
	switch {
	case o.Spec.Type == corev1.ServiceTypeExternalName:
		return nil
	case len(o.Spec.ClusterIPs) > 0:
		return o.Spec.ClusterIPs
	case o.Spec.ClusterIP != "":
		return []string{o.Spec.ClusterIP}
	default:
		return nil
	}
}

// affinity returns the session affinity timeout, 0 for none; the default is
// the API's three hours.
func affinity(o *corev1.Service, c *collector) time.Duration {
	if o.Spec.SessionAffinity != corev1.ServiceAffinityClientIP {
		return 0
	}
	seconds := corev1.DefaultClientIPServiceAffinitySeconds
	if cfg := o.Spec.SessionAffinityConfig; cfg != nil && cfg.ClientIP != nil && cfg.ClientIP.TimeoutSeconds != nil {
		seconds = *cfg.ClientIP.TimeoutSeconds
	}
	if seconds <= 0 || seconds > 86400 {
		c.fail("sessionAffinityConfig.clientIP.timeoutSeconds %d is not within 1 and 86400", seconds)
	}
	return time.Duration(seconds) * time.Second
}

// convertServiceExternals fills the addresses by which a service is reached
// from outside. Only load balancer addresses of mode VIP (the default) are
// netctl's; with mode Proxy the traffic has to reach the balancer itself.
func convertServiceExternals(o *corev1.Service, s *model.Service, c *collector) {
	for _, ip := range o.Spec.ExternalIPs {
		s.ExternalIPs = c.addr(s.ExternalIPs, "spec.externalIPs", ip)
	}
	for _, in := range o.Status.LoadBalancer.Ingress {
		if in.IP != "" && (in.IPMode == nil || *in.IPMode == corev1.LoadBalancerIPModeVIP) {
			s.LoadBalancerIPs = c.addr(s.LoadBalancerIPs, "status.loadBalancer.ingress.ip", in.IP)
		}
	}
	s.LoadBalancerClass, s.ShareKey = deref(o.Spec.LoadBalancerClass, ""), o.Annotations[annotationShare]
	wanted := o.Annotations[annotationWanted]
	if wanted == "" {
		wanted = o.Spec.LoadBalancerIP
	}
	for ip := range strings.SplitSeq(wanted, ",") {
		if ip = strings.TrimSpace(ip); ip != "" {
			s.WantedIPs = c.addr(s.WantedIPs, "annotation "+annotationWanted, ip)
		}
	}
	for _, r := range o.Spec.LoadBalancerSourceRanges {
		s.SourceRanges = c.prefix(s.SourceRanges, "spec.loadBalancerSourceRanges", strings.TrimSpace(r))
	}
}

// convertEndpointSlice converts an EndpointSlice; slices of names (FQDN) are
// errIgnored.
func convertEndpointSlice(o *discoveryv1.EndpointSlice) (*model.EndpointSlice, error) {
	var c collector
	_, headless := o.Labels[corev1.IsHeadlessService]
	s := &model.EndpointSlice{
		Name:     nameOf(o),
		Service:  o.Labels[discoveryv1.LabelServiceName],
		Headless: headless,
	}
	switch o.AddressType {
	case discoveryv1.AddressTypeFQDN:
		return nil, errIgnored
	case discoveryv1.AddressTypeIPv4:
	case discoveryv1.AddressTypeIPv6:
		s.IPv6 = true
	default:
		c.fail("addressType %q is unknown", o.AddressType)
	}
	for _, p := range o.Ports {
		if p.Port == nil {
			continue // "all ports": nothing that a proxy can use
		}
		port := model.EndpointPort{Port: c.port("ports.port", *p.Port), Protocol: model.TCP}
		if p.Name != nil {
			port.Name = *p.Name
		}
		if p.Protocol != nil {
			port.Protocol = c.protocol(*p.Protocol)
		}
		s.Ports = append(s.Ports, port)
	}
	if at := o.Annotations[corev1.EndpointsLastChangeTriggerTime]; at != "" {
		s.Triggered, _ = time.Parse(time.RFC3339Nano, at) // for a statistic; users can write anything
	}
	s.Endpoints = slices.Grow(s.Endpoints, len(o.Endpoints)) // a cluster has many: no room to spare
	for i := range o.Endpoints {
		if len(o.Endpoints[i].Addresses) > 0 {
			s.Endpoints = append(s.Endpoints, c.endpoint(&o.Endpoints[i], s.IPv6))
		}
	}
	return s, c.err()
}

// endpoint converts one endpoint of a slice.
func (c *collector) endpoint(o *discoveryv1.Endpoint, ipv6 bool) model.Endpoint {
	e := model.Endpoint{
		Address:     c.oneAddr("endpoints.addresses", o.Addresses[0]),
		Ready:       deref(o.Conditions.Ready, true),
		Serving:     deref(o.Conditions.Serving, true),
		Terminating: deref(o.Conditions.Terminating, false),
		Node:        deref(o.NodeName, ""),
		Zone:        deref(o.Zone, ""),
		Hostname:    deref(o.Hostname, ""),
	}
	if e.Address.IsValid() && e.Address.Is6() != ipv6 {
		c.fail("endpoint address %s is not of the slice's addressType", e.Address)
	}
	if o.TargetRef != nil && o.TargetRef.Kind == "Pod" {
		e.Pod = o.TargetRef.Name
	}
	if o.Hints != nil {
		for _, z := range o.Hints.ForZones {
			e.HintZones = append(e.HintZones, z.Name)
		}
		for _, n := range o.Hints.ForNodes {
			e.HintNodes = append(e.HintNodes, n.Name)
		}
	}
	return e
}

// convertServiceCIDR converts a ServiceCIDR.
func convertServiceCIDR(o *networkingv1.ServiceCIDR) (*serviceRanges, error) {
	var c collector
	var out serviceRanges
	for _, s := range o.Spec.CIDRs {
		out = c.prefix(out, "spec.cidrs", s)
	}
	return &out, c.err()
}

// namespaced is what every Kubernetes object type offers.
type namespaced interface {
	GetNamespace() string
	GetName() string
}

// nameOf returns the name of a namespaced object.
func nameOf(o namespaced) model.Name {
	return model.Name{Namespace: cmp.Or(o.GetNamespace(), "default"), Name: o.GetName()}
}

// deref returns *p, or the default.
func deref[T any](p *T, def T) T {
	if p == nil {
		return def
	}
	return *p
}

// collector gathers what is wrong with the fields of one object.
type collector struct{ errs []error }

func (c *collector) fail(format string, args ...any) {
	c.errs = append(c.errs, fmt.Errorf(format, args...))
}

// err returns everything that was wrong as one line.
func (c *collector) err() error {
	if len(c.errs) == 0 {
		return nil
	}
	texts := make([]string, len(c.errs))
	for i, e := range c.errs {
		texts[i] = e.Error()
	}
	return errors.New(strings.Join(texts, "; "))
}

// oneAddr parses an address of a field.
func (c *collector) oneAddr(field, s string) netip.Addr {
	a, err := parseAddr(s)
	if err != nil {
		c.fail("%s: %w", field, err)
	}
	return a
}

// addr appends the address s to list.
func (c *collector) addr(list []netip.Addr, field, s string) []netip.Addr {
	if a := c.oneAddr(field, s); a.IsValid() {
		return append(list, a)
	}
	return list
}

// prefix appends the range s to list.
func (c *collector) prefix(list []netip.Prefix, field, s string) []netip.Prefix {
	p, err := parsePrefix(s)
	if err != nil {
		c.fail("%s: %w", field, err)
		return list
	}
	return append(list, p)
}

// port checks a port number; 0 stays 0.
func (c *collector) port(field string, n int32) uint16 {
	if n < 0 || n > 65535 {
		c.fail("%s %d is not a port", field, n)
		return 0
	}
	return uint16(n)
}

// protocol converts a protocol; none is TCP.
func (c *collector) protocol(p corev1.Protocol) model.Protocol {
	switch p {
	case "", corev1.ProtocolTCP:
		return model.TCP
	case corev1.ProtocolUDP:
		return model.UDP
	case corev1.ProtocolSCTP:
		return model.SCTP
	default:
		c.fail("protocol %q is unknown", p)
		return 0
	}
}

// endpoints parses the comma-separated list of the endpoints annotation.
func (c *collector) endpoints(s string) []netip.AddrPort {
	var out []netip.AddrPort
	for part := range strings.SplitSeq(s, ",") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		ap, err := netip.ParseAddrPort(part)
		if err != nil || ap.Port() == 0 || ap.Addr().Zone() != "" {
			c.fail("annotation %s: %q is not an address and port", annotationEndpoints, part)
			continue
		}
		out = append(out, netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()))
	}
	return out
}

// parseAddr parses an address as the API server reads stored objects: leading
// zeros in an IPv4 address are decimal. Zones are refused, mapped addresses
// become IPv4.
func parseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		a, err = netip.ParseAddr(trimZeros(s))
	}
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("%q is not an IP address", s)
	}
	return a.Unmap(), nil
}

// parsePrefix parses a range; bits beyond the mask are cleared, as everywhere
// in Kubernetes.
func parsePrefix(s string) (netip.Prefix, error) {
	addr, bits, ok := strings.Cut(s, "/")
	a, err := parseAddr(addr)
	if !ok || err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is not an address range", s)
	}
	p, err := netip.ParsePrefix(a.String() + "/" + bits)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is not an address range", s)
	}
	return p.Masked(), nil
}

// trimZeros removes the leading zeros of dotted decimals.
func trimZeros(s string) string {
	if strings.Contains(s, ":") {
		return s
	}
	parts := strings.Split(s, ".")
	for i, p := range parts {
		if t := strings.TrimLeft(p, "0"); t != "" {
			parts[i] = t
		} else if p != "" {
			parts[i] = "0"
		}
	}
	return strings.Join(parts, ".")
}
