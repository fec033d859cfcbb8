package vnet

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"github.com/netctl/netctl/internal/agent"
	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/packet"
)

// Batch publishes once for everything that f changes.
func (c *Cluster) Batch(f func()) {
	c.tb.Helper()
	c.hold = true
	f()
	c.hold = false
	c.Publish()
}

// AddPod starts a pod on a node and publishes.
func (c *Cluster) AddPod(name, node string) *Pod {
	c.tb.Helper()
	n := c.Node(node)
	i := len(c.pods) + 10 // never used again, so that a name's address says who
	p := c.addPod(name, n, addrs(fmt.Sprintf("10.1.%s.%d", node[1:], i), fmt.Sprintf("fd00:1:0:%s::%x", node[1:], i)))
	c.Publish()
	return p
}

func (c *Cluster) addPod(name string, n *Node, at pair) *Pod {
	id := agent.FirstPodPort
	for n.pods[id] != nil {
		id++
	}
	p := &Pod{Port: c.port(n, id, name), Node: n, addrs: at, incarnation: name + "-" + strconv.Itoa(len(c.pods))}
	n.pods[id] = p
	c.pods[name+"@"+p.incarnation] = p
	c.pods[name] = p
	c.name(name, at)
	return p
}

// RemovePod ends a pod as an agent does: first out of the tables, then its
// flows. The addresses keep its name in scripts.
func (c *Cluster) RemovePod(name string) {
	c.tb.Helper()
	p := c.pods[name]
	if p == nil {
		c.tb.Fatalf("no pod has the name %q", name)
	}
	delete(p.Node.pods, p.ID)
	delete(c.ports, name)
	c.Publish()
	for _, a := range p.addrs {
		p.Node.Flows.RemoveAddr(packet.AddrFrom(a))
	}
}

// ReplacePod starts another pod, on the same node with the address of one that
// was removed or, if it was not, in the same moment as it ends.
func (c *Cluster) ReplacePod(old, name string) *Pod {
	c.tb.Helper()
	p := c.pods[old]
	if p.Node.pods[p.ID] == p {
		delete(p.Node.pods, p.ID)
		delete(c.ports, old)
	}
	q := c.addPod(name, p.Node, p.addrs)
	c.Publish()
	return q
}

// AddService makes or changes a service with TCP and UDP ServicePort in front of
// TargetPort of its backends, which are pods or, for a process on the host,
// nodes; and publishes.
func (c *Cluster) AddService(name string, backends ...string) {
	c.tb.Helper()
	at, known := c.addrs[name]
	if !known {
		c.vips++
		at = addrs(fmt.Sprintf("10.96.1.%d", c.vips), fmt.Sprintf("fd00:96::1%02x", c.vips))
	}
	c.service("default", name, at, backends...)
	c.Publish()
}

func (c *Cluster) service(namespace, name string, at pair, backends ...string) {
	id := model.Name{Namespace: namespace, Name: name}
	c.name(name, at)
	svc := &model.Service{Name: id, UID: name, Type: model.ClusterIP, ClusterIPs: at[:]}
	var ports []model.EndpointPort
	for _, proto := range []model.Protocol{model.TCP, model.UDP} {
		svc.Ports = append(svc.Ports, model.ServicePort{Name: proto.String(), Protocol: proto, Port: ServicePort})
		ports = append(ports, model.EndpointPort{Name: proto.String(), Protocol: proto, Port: TargetPort})
	}
	c.Change(func(s *model.State) {
		s.Services = slices.DeleteFunc(s.Services, func(o *model.Service) bool { return o.Name == id })
		s.Services = append(s.Services, svc)
		for _, f := range Families() {
			sliceName := model.Name{Namespace: namespace, Name: name + "-" + f.String()}
			slice := &model.EndpointSlice{Name: sliceName, Service: name, IPv6: f == V6, Ports: ports}
			for _, b := range backends {
				node := b
				if p := c.pods[b]; p != nil {
					node = p.Node.Name
				}
				slice.Endpoints = append(slice.Endpoints, model.Endpoint{
					Address: c.Addr(f, b), Ready: true, Serving: true, Node: node,
				})
			}
			s.EndpointSlices = slices.DeleteFunc(s.EndpointSlices, func(o *model.EndpointSlice) bool { return o.Name == sliceName })
			s.EndpointSlices = append(s.EndpointSlices, slice)
		}
	})
}

// OpenNodePort gives a service a node port, for TCP and UDP, and publishes.
func (c *Cluster) OpenNodePort(service string, port uint16) {
	c.tb.Helper()
	c.Change(func(s *model.State) {
		i := slices.IndexFunc(s.Services, func(o *model.Service) bool { return o.Name.Name == service })
		svc := *s.Services[i]
		svc.Type, svc.Ports = model.NodePort, slices.Clone(svc.Ports)
		for j := range svc.Ports {
			svc.Ports[j].NodePort = port
		}
		s.Services[i] = &svc
	})
	c.Publish()
}

// Change edits a copy of the State, which the next Publish compiles. Objects
// must be replaced, not edited: others may hold them.
func (c *Cluster) Change(edit func(*model.State)) {
	s := *c.state
	s.Nodes, s.Services, s.EndpointSlices = slices.Clone(s.Nodes), slices.Clone(s.Services), slices.Clone(s.EndpointSlices)
	edit(&s)
	slices.SortFunc(s.Services, func(a, b *model.Service) int { return a.Name.Compare(b.Name) })
	slices.SortFunc(s.EndpointSlices, func(a, b *model.EndpointSlice) int { return a.Name.Compare(b.Name) })
	c.state = &s
}

// ChangeNode edits a copy of a node's object and publishes.
func (c *Cluster) ChangeNode(name string, edit func(*model.Node)) {
	c.tb.Helper()
	c.Change(func(s *model.State) {
		i := slices.IndexFunc(s.Nodes, func(n *model.Node) bool { return n.Name == name })
		n := *s.Nodes[i]
		edit(&n)
		s.Nodes[i] = &n
	})
	c.Publish()
}

// RemoveNode takes a node's object out of the State and publishes; the node
// itself knows nothing of it and goes on.
func (c *Cluster) RemoveNode(name string) {
	c.tb.Helper()
	c.Change(func(s *model.State) {
		s.Nodes = slices.DeleteFunc(s.Nodes, func(n *model.Node) bool { return n.Name == name })
	})
	c.Publish()
}

// AddrPort is Addr with a port, for packets that scripts cannot say.
func (c *Cluster) AddrPort(f Family, name string, port uint16) netip.AddrPort {
	c.tb.Helper()
	return netip.AddrPortFrom(c.Addr(f, name), port)
}
