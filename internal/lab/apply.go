package lab

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/netctl/netctl/internal/cluster"
	"github.com/netctl/netctl/internal/model"
)

// podsAtOnce bounds how many pods are made at the same time.
const podsAtOnce = 8

// Apply makes the lab match manifests: it creates what is new, scales
// Deployments and replaces Services. Pods that run already are left alone.
func (l *Lab) Apply(ctx context.Context, found []cluster.Object) error {
	have, err := l.read()
	if err != nil {
		return err
	}
	var pods []*cluster.Pod
	for _, o := range found {
		made, err := l.applyObject(ctx, have, o)
		if err != nil {
			return fmt.Errorf("%s %s: %w", o.Kind, o.Name, err)
		}
		pods = append(pods, made...)
	}
	if err := l.schedule(have, pods); err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(podsAtOnce)
	for _, p := range pods {
		g.Go(func() error { return l.createPod(gctx, p) })
	}
	err = g.Wait()
	for _, p := range pods {
		if err == nil {
			l.say("pod/%s created on %s: %s", p.Name.Name, p.Node, addresses(&p.Pod))
		}
	}
	return errors.Join(err, l.reconcileEndpoints())
}

func addresses(p *model.Pod) string {
	texts := make([]string, len(p.Addresses))
	for i, a := range p.Addresses {
		texts[i] = a.String()
	}
	return strings.Join(texts, ",")
}

// applyObject applies one object and returns the pods that it demands.
func (l *Lab) applyObject(ctx context.Context, have *objects, o cluster.Object) ([]*cluster.Pod, error) {
	typed := o.Pod != nil || o.Deployment != nil || o.Service != nil || o.Namespace != nil
	if !typed && !slices.Contains(plainKinds(), o.Kind) {
		l.say("%s/%s ignored: the lab does not know kind %s", o.Kind, o.Name.Name, o.Kind)
		return nil, nil
	}
	if o.Name.Namespace != "" && !slices.Contains(have.namespaces, o.Name.Namespace) {
		return nil, fmt.Errorf("namespace %q does not exist; apply a Namespace first", o.Name.Namespace)
	}
	switch {
	case o.Namespace != nil:
		have.namespaces = append(have.namespaces, o.Namespace.Name)
		return nil, l.write(o, nil)
	case o.Pod != nil:
		if have.pod(o.Name) != nil {
			l.say("pod/%s unchanged", o.Name.Name)
			return nil, nil
		}
		return []*cluster.Pod{o.Pod}, runnable(o.Pod)
	case o.Deployment != nil:
		if err := l.write(o, nil); err != nil {
			return nil, err
		}
		return l.scale(ctx, have, o.Deployment)
	case o.Service != nil:
		return nil, l.applyService(have, o.Service)
	default:
		return nil, l.write(o, nil)
	}
}

// plainKinds are those that the lab passes on to the agents as they are.
func plainKinds() []string {
	return []string{"Block", "BlockPool", "EndpointSlice", "NetworkPolicy", "Node", "ServiceCIDR"}
}

// runnable refuses pods that the lab cannot run.
func runnable(p *cluster.Pod) error {
	if len(p.Containers) == 0 {
		return errors.New("it has no containers")
	}
	return nil
}

// scale makes or removes pods until a Deployment has its replicas.
func (l *Lab) scale(ctx context.Context, have *objects, d *cluster.Deployment) ([]*cluster.Pod, error) {
	if err := runnable(&d.Template); err != nil {
		return nil, err
	}
	owned := have.owned(d)
	for len(owned) > d.Replicas {
		last := owned[len(owned)-1]
		if err := l.deletePod(ctx, last.Name); err != nil {
			return nil, err
		}
		l.say("pod/%s deleted", last.Name.Name)
		owned = owned[:len(owned)-1]
	}
	var out []*cluster.Pod
	for range d.Replicas - len(owned) {
		p := d.Template
		p.Containers = slices.Clone(p.Containers)
		p.Labels = maps.Clone(p.Labels)
		p.Owner = d.Name.Name
		p.Name = model.Name{Namespace: d.Name.Namespace, Name: d.Name.Name + "-" + templateHash(d) + "-" + randomSuffix()}
		out = append(out, &p)
	}
	return out, nil
}

func templateHash(d *cluster.Deployment) string {
	h := fnv.New32a()
	_, _ = fmt.Fprintf(h, "%v", d.Template.Containers) // a Hash never fails
	return fmt.Sprintf("%08x", h.Sum32())
}

// randomSuffix uses the letters that Kubernetes does: no vowels, no accidents.
func randomSuffix() string {
	const letters = "bcdfghjklmnpqrstvwxz2456789"
	var b [5]byte
	_, _ = rand.Read(b[:]) // never fails
	for i := range b {
		b[i] = letters[int(b[i])%len(letters)]
	}
	return string(b[:])
}

// schedule gives every pod a node: the one that it names, or the one that has
// the fewest pods of those its selector allows.
func (l *Lab) schedule(have *objects, pods []*cluster.Pod) error {
	load := map[string]int{}
	for _, p := range have.pods {
		load[p.Node]++
	}
	for _, p := range pods {
		nodes := l.NodeNames()
		if p.Node != "" && !slices.Contains(nodes, p.Node) {
			return fmt.Errorf("pod %s: node %q is not in this lab, which has %v", p.Name, p.Node, nodes)
		}
		for k, v := range p.NodeSelector {
			if k != "kubernetes.io/hostname" {
				return fmt.Errorf("pod %s: nodeSelector %q: the lab's nodes have only the label kubernetes.io/hostname", p.Name, k)
			}
			nodes = slices.DeleteFunc(nodes, func(n string) bool { return n != v })
		}
		if p.Node == "" {
			if len(nodes) == 0 {
				return fmt.Errorf("pod %s: no node matches its nodeSelector %v", p.Name, p.NodeSelector)
			}
			p.Node = slices.MinFunc(nodes, func(a, b string) int { return cmp.Compare(load[a], load[b]) })
		}
		load[p.Node]++
	}
	return nil
}

// applyService gives a Service its virtual addresses and writes it.
func (l *Lab) applyService(have *objects, svc *cluster.Service) error {
	if old := have.service(svc.Name); old != nil && len(svc.ClusterIPs) == 0 && !svc.Headless {
		svc.ClusterIPs = old.ClusterIPs // the API server never changes them
	}
	if svc.Type != model.ExternalName && !svc.Headless && len(svc.ClusterIPs) == 0 {
		for _, cidr := range l.serviceFamilies(svc) {
			a, err := freeAddress(cidr, have.services)
			if err != nil {
				return err
			}
			svc.ClusterIPs = append(svc.ClusterIPs, a)
		}
	}
	have.services = append(slices.DeleteFunc(have.services, func(s *cluster.Service) bool { return s.Name == svc.Name }), svc)
	if err := l.write(cluster.ServiceObject(svc)); err != nil {
		return err
	}
	l.say("service/%s applied: %v", svc.Name.Name, svc.ClusterIPs)
	return nil
}

// serviceFamilies picks the ranges that a Service gets addresses from. Other
// than Kubernetes, whose default is SingleStack, a dual-stack lab gives every
// Service that does not say otherwise both.
func (l *Lab) serviceFamilies(svc *cluster.Service) []netip.Prefix {
	all := l.plan.serviceCIDRs
	switch {
	case len(svc.IPFamilies) > 0:
		var out []netip.Prefix
		for _, f := range svc.IPFamilies {
			for _, p := range all {
				if (f == "IPv4") == p.Addr().Is4() {
					out = append(out, p)
				}
			}
		}
		return out
	case svc.IPFamilyPolicy == "SingleStack":
		return all[:1]
	default:
		return all
	}
}

// staticBand is the start of a service range that is kept for addresses that
// people choose, as the API server does.
const staticBand = 16

func freeAddress(cidr netip.Prefix, services []*cluster.Service) (netip.Addr, error) {
	a := cidr.Masked().Addr()
	for i := 0; cidr.Contains(a); i++ {
		used := slices.ContainsFunc(services, func(s *cluster.Service) bool { return slices.Contains(s.ClusterIPs, a) })
		if i >= staticBand && !used {
			return a, nil
		}
		a = a.Next()
	}
	return netip.Addr{}, fmt.Errorf("service range %s is full: %d services", cidr, len(services))
}

// Delete removes the objects that manifests name.
func (l *Lab) Delete(ctx context.Context, found []cluster.Object) error {
	var errs []error
	for _, o := range slices.Backward(found) {
		errs = append(errs, l.DeleteObject(ctx, o.Kind, o.Name))
	}
	return errors.Join(errs...)
}

// DeleteObject removes one object with all that hangs on it. What is absent is
// deleted already.
func (l *Lab) DeleteObject(ctx context.Context, kind string, name model.Name) error {
	have, err := l.read()
	if err != nil {
		return err
	}
	var errs []error
	switch kind {
	case "Pod":
		errs = append(errs, l.deletePod(ctx, name))
	case "Deployment":
		errs = append(errs, cluster.RemoveObject(l.clusterDir(), kind, name))
		for _, p := range have.owned(&cluster.Deployment{Name: name}) {
			errs = append(errs, l.deletePod(ctx, p.Name))
		}
	default:
		errs = append(errs, cluster.RemoveObject(l.clusterDir(), kind, name))
	}
	errs = append(errs, l.reconcileEndpoints())
	if err := errors.Join(errs...); err != nil {
		return err
	}
	l.say("%s/%s deleted", strings.ToLower(kind), name.Name)
	return nil
}
