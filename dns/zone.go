package dns

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	mdns "github.com/miekg/dns"

	"github.com/netctl/netctl/dns/options"
	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/sharemap"
)

// Input is what Compile makes a Zone of. The zero value is the empty zone of
// the default domain, before the first list.
type Input struct {
	// Domain is the cluster domain; "" is "cluster.local".
	Domain string
	// TTL of the answers in seconds; 0 is 30, as with kubeadm.
	TTL uint32
	// NegativeTTL is how many seconds a client may remember that a name is
	// missing (the SOA minimum); 0 is 5.
	NegativeTTL uint32
	// Serial of the SOA record, usually the revision of the State.
	Serial uint32
	// Synced reports that the lists below are complete. Until then a missing
	// name is SERVFAIL, not a name error.
	Synced bool
	// PodMode says how pod records are answered.
	PodMode PodMode

	Namespaces []*model.Namespace
	Services   []*model.Service
	Slices     []*model.EndpointSlice
	Pods       []*model.Pod // read in PodsVerified only

	// Server is the Service that stands for this server, usually
	// kube-system/kube-dns: the name server of the zone is its name.
	Server model.Name
	// Addresses are where this server is reached: ns.dns.DOMAIN when there
	// is no such Service, and never an upstream.
	Addresses []netip.Addr
	// Ranges are the pod and service ranges: PTR questions inside them are
	// answered with a name error when there is no name, and not forwarded.
	Ranges []netip.Prefix

	// Previous may be a Zone that was compiled before: what the same objects
	// (by pointer) made is shared with it. The result is equal without it.
	Previous *Zone
}

// InputOf fills an Input from a State; the caller adds the configuration.
func InputOf(s *model.State) Input {
	in := Input{
		Serial: uint32(s.Revision), Synced: s.Synced, Ranges: slices.Clone(s.ServiceCIDRs),
		Namespaces: s.Namespaces, Services: s.Services, Slices: s.EndpointSlices, Pods: s.Pods,
	}
	for _, n := range s.Nodes {
		in.Ranges = append(in.Ranges, n.PodCIDRs...)
	}
	for _, b := range s.Blocks {
		in.Ranges = append(in.Ranges, b.CIDR)
	}
	return in
}

// Configure takes over what options say of the cluster's names.
func (in *Input) Configure(o *options.Options) {
	in.TTL, in.NegativeTTL = o.TTL, o.NegativeTTL
	in.PodMode = map[options.Pods]PodMode{options.PodsVerified: PodsVerified, options.PodsDisabled: PodsDisabled}[o.Pods]
}

// Namespaces returns the namespace of each pod by its addresses. Pods in their
// node's network are not there: their address is not theirs alone.
func Namespaces(pods []*model.Pod) map[netip.Addr]string {
	out := make(map[netip.Addr]string, len(pods))
	for _, p := range pods {
		if p.HostNetwork || p.Finished {
			continue
		}
		for _, a := range p.Addresses {
			out[a.Unmap()] = p.Name.Namespace
		}
	}
	return out
}

// Problem is an object whose name or target cannot be served.
type Problem struct {
	Object model.Name
	Text   string
}

// String returns "namespace/name: text".
func (p Problem) String() string { return p.Object.String() + ": " + p.Text }

// Zone is the cluster's names at one revision. It is immutable and safe for
// concurrent use; make one with Compile.
type Zone struct {
	domain     string // without the final dot
	wire       string // domain on the wire, lower-cased
	labels     int
	ttl        uint32
	synced     bool
	podMode    PodMode
	soa        [soaLen]byte
	namespaces map[string]*namespace
	vips       sharemap.Map[netip.Addr, *service]   // by ClusterIP
	endpoints  sharemap.Map[netip.Addr, *service]   // by address of a ready endpoint: the service whose name is first
	more       sharemap.Map[netip.Addr, []*service] // and the others, sorted
	server     *service
	addresses  []netip.Addr
	ranges     []netip.Prefix // sorted and apart
	problems   []Problem

	made Input // what Compile compares the next input with
}

// Problems returns the objects that Compile had to leave out, sorted.
func (z *Zone) Problems() []Problem { return slices.Clone(z.problems) }

// Synced reports whether the zone was made of complete lists.
func (z *Zone) Synced() bool { return z.synced }

// Domain returns the cluster domain without the final dot.
func (z *Zone) Domain() string { return z.domain }

type namespace struct {
	services map[string]*service
	pods     map[netip.Addr]struct{} // PodsVerified only
}

// addrs are the bytes of sorted addresses, 4 or 16 for each: a quarter of the
// memory of record bytes, which are cheap to write from them.
type addrs struct {
	v4, v6 string
}

func (a addrs) empty() bool { return a.v4 == "" && a.v6 == "" }

// service is a Service with its slices, or slices without a Service (object is
// nil), which have PTR records only. SRV, PTR and port names are read from the
// objects when they are asked; what is hot is precomputed.
type service struct {
	name   model.Name
	object *model.Service
	slices []*model.EndpointSlice

	all    addrs            // of the service's own name
	dashed addrs            // endpoints that are named after their address
	hosts  map[string]addrs // endpoints with a hostname, by it in lower case
	target *target          // ExternalName only
}

// target is a valid external name.
type target struct {
	text string // with the final dot
	wire string // lower-cased
}

// Compile makes a Zone. It is pure: equal input makes a deeply equal Zone.
func Compile(in Input) *Zone {
	if z := update(in); z != nil {
		return z
	}
	z := &Zone{
		domain: strings.TrimSuffix(cmp.Or(in.Domain, defaultDomain), "."),
		ttl:    cmp.Or(in.TTL, defaultTTL), synced: in.Synced, podMode: in.PodMode,
		namespaces: make(map[string]*namespace, len(in.Namespaces)),
		addresses:  unmapped(in.Addresses), ranges: disjoint(in.Ranges),
	}
	t, ok := parseTarget(z.domain)
	if !ok || len(t.wire) > maxName-64 {
		z.problems = append(z.problems, Problem{Text: fmt.Sprintf("domain %q is not a domain name, %s is served", z.domain, defaultDomain)})
		z.domain = defaultDomain
		t, _ = parseTarget(z.domain)
	}
	z.made = remembered(in)
	z.wire, z.labels = t.wire, mdns.CountLabel(t.text)
	z.soa = makeSOA(in)

	for _, n := range in.Namespaces {
		z.namespace(n.Name)
	}
	z.addServices(in)
	if z.podMode == PodsVerified {
		z.addPods(in.Pods)
	}
	slices.SortFunc(z.problems, func(a, b Problem) int {
		return cmp.Or(a.Object.Compare(b.Object), cmp.Compare(a.Text, b.Text))
	})
	return z
}

// namespace returns the namespace of that name and makes it when it is new.
func (z *Zone) namespace(s string) *namespace {
	key := strings.ToLower(s)
	n := z.namespaces[key]
	if n == nil {
		n = &namespace{services: map[string]*service{}}
		z.namespaces[key] = n
	}
	return n
}

func (z *Zone) addServices(in Input) {
	bySlice := make(map[model.Name][]*model.EndpointSlice, len(in.Services))
	for _, s := range in.Slices {
		if s.Service != "" {
			key := model.Name{Namespace: s.Name.Namespace, Name: s.Service}
			bySlice[key] = append(bySlice[key], s)
		}
	}
	for _, list := range bySlice {
		slices.SortFunc(list, compareSlices)
	}
	index := z.index()
	for _, o := range in.Services {
		s := z.reuse(in.Previous, o, bySlice[o.Name])
		delete(bySlice, o.Name)
		if !z.fits(s) {
			continue
		}
		z.namespace(o.Name.Namespace).services[strings.ToLower(o.Name.Name)] = s
		for _, a := range o.ClusterIPs {
			if a.IsValid() {
				index.vips.Set(a.Unmap(), s)
			}
		}
		if o.Name == in.Server && o.Type != model.ExternalName {
			z.server = s
		}
		index.add(s)
	}
	// Slices whose Service is gone or not known yet have PTR records only.
	for key, list := range bySlice {
		if s := (&service{name: key, slices: list}); z.fits(s) {
			index.add(s)
		}
	}
	index.done(z)
}

func compareSlices(a, b *model.EndpointSlice) int { return a.Name.Compare(b.Name) }

// reuse returns the previous zone's service when it was made of the same
// objects.
func (z *Zone) reuse(prev *Zone, o *model.Service, eps []*model.EndpointSlice) *service {
	if prev != nil {
		if n := prev.namespaces[strings.ToLower(o.Name.Namespace)]; n != nil {
			s := n.services[strings.ToLower(o.Name.Name)]
			if s != nil && s.object == o && slices.Equal(s.slices, eps) {
				return s
			}
		}
	}
	return makeService(o, eps)
}

// fits records the problems of a service and reports whether its names can be
// written on the wire.
func (z *Zone) fits(s *service) bool {
	problem := func(format string, args ...any) {
		z.problems = append(z.problems, Problem{Object: s.name, Text: fmt.Sprintf(format, args...)})
	}
	longest := 3 + 1 + len(s.name.Namespace) + 1 + len(s.name.Name) + 1 + len(z.wire) + 1 + maxLabel
	if !validLabel(s.name.Name) || !validLabel(s.name.Namespace) || longest > maxName {
		problem("the name is not served: it does not fit into %s", z.domain)
		return false
	}
	if s.object != nil && s.object.Type == model.ExternalName && s.target == nil {
		problem("externalName %q is not a domain name", s.object.ExternalName)
	}
	for _, sl := range s.slices {
		for i := range sl.Endpoints {
			if h := sl.Endpoints[i].Hostname; h != "" && !validLabel(h) {
				problem("endpoint %s is named after its address: hostname %q is not a label", sl.Endpoints[i].Address, h)
			}
		}
	}
	return true
}

func (z *Zone) addPods(pods []*model.Pod) {
	for _, p := range pods {
		if p.Terminating || p.Finished {
			continue
		}
		n := z.namespace(p.Name.Namespace)
		if n.pods == nil {
			n.pods = map[netip.Addr]struct{}{}
		}
		for _, a := range p.Addresses {
			n.pods[a.Unmap()] = struct{}{}
		}
	}
}

// makeService precomputes what is asked most. It depends on nothing but the
// objects, so that it can be shared between zones.
func makeService(o *model.Service, eps []*model.EndpointSlice) *service {
	s := &service{name: o.Name, object: o, slices: eps}
	if o.Type == model.ExternalName {
		if t, ok := parseTarget(o.ExternalName); ok {
			s.target = &t
		}
		return s
	}
	var all, dashed gather
	hosts := map[string]*gather{}
	for _, sl := range eps {
		for i := range sl.Endpoints {
			e := &sl.Endpoints[i]
			if !e.Ready {
				continue
			}
			all.add(e.Address)
			if !validLabel(e.Hostname) {
				dashed.add(e.Address)
				continue
			}
			key := strings.ToLower(e.Hostname)
			if hosts[key] == nil {
				hosts[key] = &gather{}
			}
			hosts[key].add(e.Address)
		}
	}
	s.dashed = dashed.addrs()
	if o.Headless {
		if s.all = all.addrs(); s.all == s.dashed {
			s.all = s.dashed // one copy of the bytes
		}
	} else {
		var ips gather
		for _, a := range o.ClusterIPs {
			ips.add(a)
		}
		s.all = ips.addrs()
	}
	for h, g := range hosts {
		if s.hosts == nil {
			s.hosts = make(map[string]addrs, len(hosts))
		}
		s.hosts[h] = g.addrs()
	}
	return s
}

// gather collects addresses of both families.
type gather struct {
	v4, v6 []netip.Addr
}

func (g *gather) add(a netip.Addr) {
	switch a = a.Unmap(); {
	case a.Is4():
		g.v4 = append(g.v4, a)
	case a.Is6():
		g.v6 = append(g.v6, a.WithZone(""))
	}
}

// addrs sorts what was collected and drops what is there twice.
func (g *gather) addrs() addrs {
	return addrs{v4: packed(g.v4), v6: packed(g.v6)}
}

func packed(list []netip.Addr) string {
	slices.SortFunc(list, netip.Addr.Compare)
	var b strings.Builder
	for _, a := range slices.Compact(list) {
		b.Write(a.AsSlice())
	}
	return b.String()
}

// unpacked returns the addresses of the bytes that packed made.
func unpacked(s string, size int) []netip.Addr {
	out := make([]netip.Addr, 0, len(s)/size)
	for i := 0; i+size <= len(s); i += size {
		if a, ok := netip.AddrFromSlice([]byte(s[i : i+size])); ok {
			out = append(out, a)
		}
	}
	return out
}

// disjoint sorts prefixes and drops those that lie inside others.
func disjoint(list []netip.Prefix) []netip.Prefix {
	var sorted, out []netip.Prefix
	for _, p := range list {
		if p.IsValid() {
			sorted = append(sorted, p.Masked())
		}
	}
	slices.SortFunc(sorted, netip.Prefix.Compare) // the wider of two with one start comes first
	for _, p := range sorted {
		if len(out) == 0 || !out[len(out)-1].Overlaps(p) {
			out = append(out, p)
		}
	}
	return out
}

// within reports whether an address lies in one of the zone's ranges.
func (z *Zone) within(a netip.Addr) bool {
	i, exact := slices.BinarySearchFunc(z.ranges, a, func(p netip.Prefix, a netip.Addr) int { return p.Addr().Compare(a) })
	return exact || i > 0 && z.ranges[i-1].Contains(a)
}

func unmapped(list []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range list {
		if a.IsValid() {
			out = append(out, a.Unmap())
		}
	}
	return out
}

// parseTarget reads a domain name from text. An IP address is none: CoreDNS
// answers an ExternalName service that holds one with a name error.
func parseTarget(s string) (target, bool) {
	if _, err := netip.ParseAddr(s); err == nil || s == "" || s == "." {
		return target{}, false
	}
	t := target{text: mdns.Fqdn(s)}
	var buf [maxName + 1]byte
	end, err := mdns.PackDomainName(t.text, buf[:], 0, nil, false)
	if err != nil {
		return target{}, false
	}
	var n name
	if n.parse(buf[:end]) != end {
		return target{}, false
	}
	t.wire = string(n.wire[:n.len])
	return t, true
}

// validLabel reports whether s can be one label of an answer's target.
func validLabel(s string) bool {
	if s == "" || len(s) > maxLabel {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if c-'0' >= 10 && c|0x20-'a' >= 26 && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

// A SOA record without pointers: owner, name server and mailbox end in a
// pointer to the zone's name in the question, which is filled in per answer.
//
//	ptr type class TTL len | 2 ns 3 dns ptr | 10 hostmaster ptr | 5 numbers
const (
	soaLen     = 54
	soaData    = 12
	soaServer  = soaData + 7    // pointer behind "ns.dns"
	soaMailbox = soaData + 20   // pointer behind "hostmaster"
	soaNumbers = soaMailbox + 2 // serial, refresh, retry, expire, minimum
)

func makeSOA(in Input) [soaLen]byte {
	var b [soaLen]byte
	minimum := cmp.Or(in.NegativeTTL, defaultNegativeTTL)
	put16, put32 := binary.BigEndian.PutUint16, binary.BigEndian.PutUint32
	put16(b[2:], typeSOA)
	put16(b[4:], classIN)
	put32(b[6:], min(minimum, 300))
	put16(b[10:], soaLen-soaData)
	copy(b[soaData:], "\x02ns\x03dns")
	copy(b[soaServer+2:], "\x0ahostmaster")
	for i, v := range [5]uint32{in.Serial, 7200, 1800, 86400, minimum} {
		put32(b[soaNumbers+4*i:], v)
	}
	return b
}
