package lab

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/netctl/netctl/internal/cluster"
	"github.com/netctl/netctl/internal/model"
)

// endpointSlices is the EndpointSlice controller: for every Service with a
// selector, its pods, by family and by the port numbers that its target ports
// have on them. Pods that give one named port different numbers end in
// different slices. It is pure and its result sorted.
func endpointSlices(services []*cluster.Service, pods []*cluster.Pod) []model.EndpointSlice {
	var out []model.EndpointSlice
	for _, svc := range services {
		if len(svc.Selector) == 0 || svc.Type == model.ExternalName {
			continue
		}
		out = append(out, serviceSlices(svc, pods)...)
	}
	return out
}

func serviceSlices(svc *cluster.Service, pods []*cluster.Pod) []model.EndpointSlice {
	byKey := map[string]*model.EndpointSlice{}
	var keys []string
	for _, pod := range pods {
		if !selects(svc, pod) {
			continue
		}
		ports := endpointPorts(svc, pod)
		for _, a := range pod.Addresses {
			key := fmt.Sprint(a.Is6(), ports)
			slice := byKey[key]
			if slice == nil {
				slice = &model.EndpointSlice{
					Service: svc.Name.Name, IPv6: a.Is6(), Ports: ports, Headless: svc.Headless,
				}
				byKey[key] = slice
				keys = append(keys, key)
			}
			slice.Endpoints = append(slice.Endpoints, endpoint(svc, pod, a))
		}
	}
	slices.Sort(keys)
	out := make([]model.EndpointSlice, 0, len(keys))
	for i, k := range keys {
		s := byKey[k]
		s.Name = model.Name{Namespace: svc.Name.Namespace, Name: fmt.Sprintf("%s-%d", svc.Name.Name, i+1)}
		slices.SortFunc(s.Endpoints, func(a, b model.Endpoint) int { return a.Address.Compare(b.Address) })
		out = append(out, *s)
	}
	return out
}

// selects reports whether pod backs svc: endpointslice's ShouldPodBeInEndpoints.
func selects(svc *cluster.Service, pod *cluster.Pod) bool {
	if pod.Name.Namespace != svc.Name.Namespace || pod.Finished || len(pod.Addresses) == 0 {
		return false
	}
	for k, v := range svc.Selector {
		if got, ok := pod.Labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// endpointPorts are the service's ports as they are on pod. A named target port
// that the pod does not declare is left out, as Kubernetes does.
func endpointPorts(svc *cluster.Service, pod *cluster.Pod) []model.EndpointPort {
	var out []model.EndpointPort
	for i, p := range svc.Ports {
		target := cluster.TargetPort{Port: p.Port}
		if i < len(svc.TargetPorts) {
			target = svc.TargetPorts[i]
		}
		if n, ok := target.Resolve(&pod.Pod, p.Protocol); ok {
			out = append(out, model.EndpointPort{Name: p.Name, Protocol: p.Protocol, Port: n})
		}
	}
	slices.SortFunc(out, func(a, b model.EndpointPort) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
	})
	return out
}

func endpoint(svc *cluster.Service, pod *cluster.Pod, a netip.Addr) model.Endpoint {
	e := model.Endpoint{
		Address:     a,
		Ready:       svc.PublishNotReady || (pod.Ready && !pod.Terminating),
		Serving:     pod.Ready,
		Terminating: pod.Terminating,
		Node:        pod.Node,
		Pod:         pod.Name.Name,
	}
	if pod.Hostname != "" && pod.Subdomain == svc.Name.Name {
		e.Hostname = pod.Hostname
	}
	return e
}
