package statefile

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/netctl/netctl/internal/model"
)

// large is a cluster of 5000 services with ten endpoints each, and of the pods
// of one node.
func large() *Content {
	const services, endpoints, nodes, zones, pods = 5000, 10, 100, 3, 110
	s := &model.State{Revision: 1, Synced: true}
	for i := range nodes {
		s.Nodes = append(s.Nodes, &model.Node{
			Name: fmt.Sprintf("node-%d", i), Addresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})},
			PodCIDRs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 128, byte(i), 0}), 24)}, Zone: fmt.Sprintf("zone-%d", i%zones),
			PublicKey: "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=", Endpoints: []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 51820)},
		})
	}
	for i := range pods {
		s.Pods = append(s.Pods, &model.Pod{
			Name: model.Name{Namespace: "default", Name: fmt.Sprintf("pod-%d", i)}, UID: fmt.Sprintf("6d2f0f6a-1b5e-4b53-9c3e-0d4f4c8f%04d", i),
			Labels: map[string]string{"app": fmt.Sprint("a", i%9), "pod-template-hash": "7d9c5b6f4"}, Node: "node-1", Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 128, 1, byte(i)})},
		})
	}
	for i := range services {
		name := model.Name{Namespace: "default", Name: fmt.Sprintf("service-%d", i)}
		s.Services = append(s.Services, &model.Service{
			Name: name, UID: fmt.Sprintf("6d2f0f6a-1b5e-4b53-9c3e-0d4f4c8f%04d", i), Type: model.ClusterIP, ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})},
			Ports: []model.ServicePort{{Name: "http", Port: 80, Protocol: model.TCP}},
		})
		slice := &model.EndpointSlice{Name: name, Service: name.Name, Ports: []model.EndpointPort{{Name: "http", Port: 8080, Protocol: model.TCP}}}
		for k := range endpoints {
			slice.Endpoints = append(slice.Endpoints, model.Endpoint{
				Address: netip.AddrFrom4([4]byte{10, byte(128 + i>>12), byte(i >> 4), byte(i&15<<4 + k)}), Ready: true, Serving: true,
				Node: fmt.Sprintf("node-%d", (i+k)%nodes), Zone: fmt.Sprintf("zone-%d", k%zones), Pod: fmt.Sprintf("service-%d-7d9c5b6f4-%05d", i, k),
			})
		}
		s.EndpointSlices = append(s.EndpointSlices, slice)
	}
	slices.SortFunc(s.Nodes, func(a, b *model.Node) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(s.Pods, func(a, b *model.Pod) int { return a.Name.Compare(b.Name) })
	slices.SortFunc(s.Services, func(a, b *model.Service) int { return a.Name.Compare(b.Name) })
	slices.SortFunc(s.EndpointSlices, func(a, b *model.EndpointSlice) int { return a.Name.Compare(b.Name) })
	return &Content{Cluster: "c0ffee", State: s, Settings: sample().Settings}
}

// BenchmarkFile is what a start waits for its predecessor's State, and what an
// agent pays to keep it, with 5000 services and 50 000 endpoints.
func BenchmarkFile(b *testing.B) {
	c := large()
	var file bytes.Buffer
	b.Run("write", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			file.Reset()
			if err := encode(&file, c); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(file.Len()), "bytes")
	})
	b.Run("read", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := decode(file.Bytes()); err != nil {
				b.Fatal(err)
			}
		}
	})
}
