package cluster

import (
	"fmt"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/netctl/netctl/internal/model"
)

// convertNetworkPolicy converts a NetworkPolicy. Without policyTypes a policy
// is one for ingress, and for egress only if it has egress rules.
func convertNetworkPolicy(o *networkingv1.NetworkPolicy) (*model.NetworkPolicy, error) {
	var c collector
	p := &model.NetworkPolicy{Name: nameOf(o), Pods: c.selector("spec.podSelector", &o.Spec.PodSelector)}
	types := o.Spec.PolicyTypes
	if len(types) == 0 {
		p.Isolates.Ingress = true
		p.Isolates.Egress = len(o.Spec.Egress) > 0
	}
	for _, t := range types {
		switch t {
		case networkingv1.PolicyTypeIngress:
			p.Isolates.Ingress = true
		case networkingv1.PolicyTypeEgress:
			p.Isolates.Egress = true
		default:
			c.fail("spec.policyTypes: %q is unknown", t)
		}
	}
	if p.Isolates.Ingress {
		for i, r := range o.Spec.Ingress {
			p.Ingress = append(p.Ingress, c.rule(fmt.Sprintf("spec.ingress[%d]", i), r.From, r.Ports))
		}
	}
	if p.Isolates.Egress {
		for i, r := range o.Spec.Egress {
			p.Egress = append(p.Egress, c.rule(fmt.Sprintf("spec.egress[%d]", i), r.To, r.Ports))
		}
	}
	return p, c.err()
}

// rule converts one rule of either direction.
func (c *collector) rule(field string, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) model.PolicyRule {
	var r model.PolicyRule
	for i := range peers {
		r.Peers = append(r.Peers, c.peer(field, &peers[i]))
	}
	for i := range ports {
		r.Ports = append(r.Ports, c.policyPort(field+".ports", &ports[i]))
	}
	return r
}

// peer converts one peer. One without any of the three fields would match
// everything by accident, so it is refused, as the API server does.
func (c *collector) peer(field string, o *networkingv1.NetworkPolicyPeer) model.PolicyPeer {
	var p model.PolicyPeer
	if o.IPBlock != nil {
		if o.PodSelector != nil || o.NamespaceSelector != nil {
			c.fail("%s: ipBlock cannot be combined with selectors", field)
		}
		if cidr := c.prefix(nil, field+".ipBlock.cidr", o.IPBlock.CIDR); len(cidr) == 1 {
			p.CIDR = cidr[0]
		}
		for _, e := range o.IPBlock.Except {
			p.Except = c.prefix(p.Except, field+".ipBlock.except", e)
		}
		return p
	}
	if o.PodSelector == nil && o.NamespaceSelector == nil {
		c.fail("%s: a peer needs ipBlock, podSelector or namespaceSelector", field)
	}
	if o.PodSelector != nil {
		s := c.selector(field+".podSelector", o.PodSelector)
		p.Pods = &s
	}
	if o.NamespaceSelector != nil {
		s := c.selector(field+".namespaceSelector", o.NamespaceSelector)
		p.Namespaces = &s
	}
	return p
}

// policyPort converts one port.
func (c *collector) policyPort(field string, o *networkingv1.NetworkPolicyPort) model.PolicyPort {
	p := model.PolicyPort{Protocol: model.TCP}
	if o.Protocol != nil {
		p.Protocol = c.protocol(*o.Protocol)
	}
	switch {
	case o.Port == nil:
	case o.Port.Type == intstr.String:
		if p.Name = o.Port.StrVal; p.Name == "" {
			c.fail("%s: the port name is empty", field)
		}
	default:
		if p.Port = c.port(field, o.Port.IntVal); p.Port == 0 {
			c.fail("%s: port 0", field)
		}
	}
	if o.EndPort != nil {
		p.End = c.port(field+".endPort", *o.EndPort)
		if p.Port == 0 || p.End < p.Port {
			c.fail("%s: endPort %d needs a numeric port that is not greater", field, *o.EndPort)
		}
	}
	return p
}

// selector converts a label selector.
func (c *collector) selector(field string, o *metav1.LabelSelector) model.Selector {
	s := model.Selector{MatchLabels: o.MatchLabels}
	for _, e := range o.MatchExpressions {
		wantValues := false
		switch e.Operator {
		case metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn:
			wantValues = true
		case metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist:
		default:
			c.fail("%s: operator %q is unknown", field, e.Operator)
		}
		if wantValues != (len(e.Values) > 0) {
			c.fail("%s: operator %s with %d values", field, e.Operator, len(e.Values))
		}
		s.Expressions = append(s.Expressions, model.SelectorExpression{
			Key: e.Key, Operator: string(e.Operator), Values: slices.Clone(e.Values),
		})
	}
	return s
}
