package settings

import (
	"net/netip"
	"slices"

	"github.com/netctl/netctl/internal/model"
)

// The names that others know things by.
//
//nolint:gochecknoglobals // names known at compile time
var (
	dnsService = model.Name{Namespace: "kube-system", Name: "kube-dns"}
	apiService = model.Name{Namespace: "default", Name: "kubernetes"}
)

// DNSService is the Service whose virtual addresses kubelets send their pods'
// questions to.
func DNSService() model.Name { return dnsService }

// The label of kube-proxy's pods, as kubeadm sets it.
const (
	appLabel       = "k8s-app"
	kubeProxyLabel = "kube-proxy"
)

// PodsOnly reports whether node processes and node ports are left to the
// kube-proxy of this node. One that is on its way in or out counts, too: its
// rules are in the kernel as long as anybody says so.
func PodsOnly(p Proxy, s *model.State, node string) bool {
	switch p {
	case ProxyFull:
		return false
	case ProxyPods:
		return true
	default:
		return slices.ContainsFunc(s.Pods, func(pod *model.Pod) bool {
			return pod.Node == node && !pod.Finished && pod.Name.Namespace == "kube-system" && pod.Labels[appLabel] == kubeProxyLabel
		})
	}
}

// ForeignDNS reports whether somebody else answers at the name server's address:
// a Service with endpoints, which the one that the agent makes never has.
func ForeignDNS(d DNS, s *model.State) bool {
	switch d {
	case DNSOn:
		return false
	case DNSOff:
		return true
	default:
		return s.Service(dnsService) != nil && slices.ContainsFunc(s.EndpointSlices, func(e *model.EndpointSlice) bool {
			return e.Service == dnsService.Name && e.Name.Namespace == dnsService.Namespace && slices.ContainsFunc(e.Endpoints, serves)
		})
	}
}

func serves(e model.Endpoint) bool { return e.Ready || e.Serving }

// dnsOffset is where in the services' range kubeadm and the kubelets it sets up
// expect the name server.
const dnsOffset = 10

// NameServers returns the addresses that the Service kube-dns shall have: those
// that kubelets were given, else the tenth of the range that the API server's own
// Service is in. Addresses outside the services' ranges (a cache on the node, an
// external server) cannot be a Service's and are left out. None: not known yet.
func NameServers(kubelet []netip.Addr, s *model.State) []netip.Addr {
	inRange := func(a netip.Addr) bool {
		return slices.ContainsFunc(s.ServiceCIDRs, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	var out []netip.Addr
	for _, a := range kubelet {
		if inRange(a) {
			out = append(out, a)
		}
	}
	if len(out) > 0 || len(kubelet) > 0 {
		return out
	}
	api := s.Service(apiService)
	if api == nil || len(api.ClusterIPs) == 0 {
		return nil
	}
	for _, p := range s.ServiceCIDRs {
		if !p.Contains(api.ClusterIPs[0]) {
			continue
		}
		a := p.Masked().Addr()
		for range dnsOffset {
			a = a.Next()
		}
		if p.Contains(a) {
			return []netip.Addr{a}
		}
	}
	return nil
}
