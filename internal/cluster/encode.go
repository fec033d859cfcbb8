package cluster

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"

	"github.com/netctl/netctl/internal/model"
)

// object renders a Kubernetes object as an Object.
func object(kind string, name model.Name, v any) (Object, error) {
	raw, err := yaml.Marshal(v)
	if err != nil {
		return Object{}, fmt.Errorf("encode %s %s: %w", kind, name, err)
	}
	return Object{Kind: kind, Name: name, Raw: raw}, nil
}

// base decodes the manifest that a value came from into o, so that what netctl
// does not know of it is kept.
func base(raw []byte, o any) error {
	if raw == nil {
		return nil
	}
	return document{json: raw}.into(o)
}

// PodObject returns the Pod as Kubernetes has it, with its status (podIPs,
// phase, conditions). Fields of the manifest that p was parsed from and that p
// has no room for are kept.
func PodObject(p *Pod) (Object, error) {
	var o corev1.Pod
	if err := base(p.raw, &o); err != nil {
		return Object{}, fmt.Errorf("encode pod %s: %w", p.Name, err)
	}
	o.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}
	o.Name, o.Namespace, o.UID, o.Labels = p.Name.Name, p.Name.Namespace, types.UID(p.UID), p.Labels
	if p.Terminating && o.DeletionTimestamp == nil {
		at := metav1.NewTime(time.Unix(0, 0).UTC()) // only whether it is set matters
		o.DeletionTimestamp = &at
	}
	if p.Owner != "" {
		o.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "Deployment", Name: p.Owner}}
	}
	o.Spec.NodeName, o.Spec.Hostname, o.Spec.Subdomain = p.Node, p.Hostname, p.Subdomain
	o.Spec.HostNetwork = p.HostNetwork
	o.Spec.NodeSelector = p.NodeSelector
	o.Spec.DNSPolicy = corev1.DNSPolicy(p.DNSPolicy)
	if p.raw == nil {
		o.Spec.Containers = podContainers(p)
		o.Spec.DNSConfig = podDNSConfig(p)
	}
	o.Status = podStatus(p)
	obj, err := object("Pod", p.Name, &o)
	obj.Pod = p
	return obj, err
}

// podContainers renders the containers of a pod that was made without a
// manifest; the declared ports stand with the first.
func podContainers(p *Pod) []corev1.Container {
	out := make([]corev1.Container, 0, len(p.Containers))
	for i, c := range p.Containers {
		ctr := corev1.Container{Name: c.Name, Image: c.Image, Command: c.Command, Args: c.Args, WorkingDir: c.WorkingDir}
		for _, e := range c.Env {
			env := corev1.EnvVar{Name: e.Name, Value: e.Value}
			if e.Field != "" {
				env.ValueFrom = &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: e.Field}}
			}
			ctr.Env = append(ctr.Env, env)
		}
		if i == 0 {
			for _, port := range p.Ports {
				cp := corev1.ContainerPort{
					Name: port.Name, ContainerPort: int32(port.Port), HostPort: int32(port.HostPort),
					Protocol: corev1.Protocol(port.Protocol.String()),
				}
				if port.HostIP.IsValid() {
					cp.HostIP = port.HostIP.String()
				}
				ctr.Ports = append(ctr.Ports, cp)
			}
		}
		out = append(out, ctr)
	}
	return out
}

// podDNSConfig renders the resolver settings of a pod.
func podDNSConfig(p *Pod) *corev1.PodDNSConfig {
	if len(p.Nameservers)+len(p.Searches)+len(p.DNSOptions) == 0 {
		return nil
	}
	cfg := &corev1.PodDNSConfig{Nameservers: p.Nameservers, Searches: p.Searches}
	for _, s := range p.DNSOptions {
		name, value, has := strings.Cut(s, ":")
		option := corev1.PodDNSConfigOption{Name: name}
		if has {
			option.Value = &value
		}
		cfg.Options = append(cfg.Options, option)
	}
	return cfg
}

// podStatus renders what a kubelet would report.
func podStatus(p *Pod) corev1.PodStatus {
	phase := p.Phase
	if phase == "" && p.Finished {
		phase = string(corev1.PodSucceeded)
	}
	s := corev1.PodStatus{Phase: corev1.PodPhase(cmp.Or(phase, string(corev1.PodPending)))}
	for _, a := range p.Addresses {
		s.PodIPs = append(s.PodIPs, corev1.PodIP{IP: a.String()})
	}
	if len(s.PodIPs) > 0 {
		s.PodIP = s.PodIPs[0].IP
	}
	for _, ip := range p.HostIPs {
		s.HostIPs = append(s.HostIPs, corev1.HostIP{IP: ip})
	}
	if len(p.HostIPs) > 0 {
		s.HostIP = p.HostIPs[0]
	}
	s.Conditions = []corev1.PodCondition{
		condition(corev1.PodScheduled, p.Node != ""),
		condition(corev1.ContainersReady, p.Ready),
		condition(corev1.PodReady, p.Ready),
	}
	return s
}

func condition(t corev1.PodConditionType, on bool) corev1.PodCondition {
	if on {
		return corev1.PodCondition{Type: t, Status: corev1.ConditionTrue}
	}
	return corev1.PodCondition{Type: t, Status: corev1.ConditionFalse}
}

// ServiceObject returns the Service as Kubernetes has it.
func ServiceObject(s *Service) (Object, error) {
	var o corev1.Service
	if err := base(s.raw, &o); err != nil {
		return Object{}, fmt.Errorf("encode service %s: %w", s.Name, err)
	}
	o.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}
	o.Name, o.Namespace, o.UID, o.Labels = s.Name.Name, s.Name.Namespace, types.UID(s.UID), s.Labels
	o.Spec.Type = corev1.ServiceType(s.Type)
	o.Spec.Selector = s.Selector
	o.Spec.ExternalName = s.ExternalName
	o.Spec.PublishNotReadyAddresses = s.PublishNotReady
	o.Spec.HealthCheckNodePort = int32(s.HealthCheckNodePort)
	o.Spec.ClusterIPs, o.Spec.ExternalIPs = addrStrings(s.ClusterIPs), addrStrings(s.ExternalIPs)
	if s.Headless {
		o.Spec.ClusterIPs = []string{corev1.ClusterIPNone}
	}
	o.Spec.ClusterIP = ""
	if len(o.Spec.ClusterIPs) > 0 {
		o.Spec.ClusterIP = o.Spec.ClusterIPs[0]
	}
	o.Spec.IPFamilies = nil
	for _, f := range s.IPFamilies {
		o.Spec.IPFamilies = append(o.Spec.IPFamilies, corev1.IPFamily(f))
	}
	if s.IPFamilyPolicy != "" {
		policy := corev1.IPFamilyPolicy(s.IPFamilyPolicy)
		o.Spec.IPFamilyPolicy = &policy
	}
	o.Spec.Ports = servicePorts(s)
	serviceTraffic(s, &o)
	obj, err := object("Service", s.Name, &o)
	obj.Service = s
	return obj, err
}

// servicePorts renders the ports with their targets.
func servicePorts(s *Service) []corev1.ServicePort {
	var out []corev1.ServicePort
	for i, p := range s.Ports {
		port := corev1.ServicePort{
			Name: p.Name, Protocol: corev1.Protocol(p.Protocol.String()),
			Port: int32(p.Port), NodePort: int32(p.NodePort), TargetPort: intstr.FromInt32(int32(p.Port)),
		}
		if i < len(s.TargetPorts) {
			if t := s.TargetPorts[i]; t.Name != "" {
				port.TargetPort = intstr.FromString(t.Name)
			} else if t.Port != 0 {
				port.TargetPort = intstr.FromInt32(int32(t.Port))
			}
		}
		out = append(out, port)
	}
	return out
}

// serviceTraffic renders affinity, traffic policies and balancer addresses.
func serviceTraffic(s *Service, o *corev1.Service) {
	o.Spec.SessionAffinity, o.Spec.SessionAffinityConfig = corev1.ServiceAffinityNone, nil
	if s.AffinityTimeout > 0 {
		seconds := int32(s.AffinityTimeout / time.Second)
		o.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		o.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
	}
	o.Spec.InternalTrafficPolicy = nil
	if s.InternalLocal {
		local := corev1.ServiceInternalTrafficPolicyLocal
		o.Spec.InternalTrafficPolicy = &local
	}
	o.Spec.ExternalTrafficPolicy = ""
	if s.ExternalLocal {
		o.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	}
	if s.TrafficDistribution != "" {
		o.Spec.TrafficDistribution = &s.TrafficDistribution
	}
	o.Spec.LoadBalancerSourceRanges = prefixStrings(s.SourceRanges)
	o.Status.LoadBalancer.Ingress = nil
	for _, a := range s.LoadBalancerIPs {
		vip := corev1.LoadBalancerIPModeVIP
		o.Status.LoadBalancer.Ingress = append(o.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: a.String(), IPMode: &vip})
	}
}

// EndpointSliceObject returns the EndpointSlice as Kubernetes has it.
func EndpointSliceObject(s *model.EndpointSlice) (Object, error) {
	o := discoveryv1.EndpointSlice{
		TypeMeta:    metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta:  metav1.ObjectMeta{Name: s.Name.Name, Namespace: s.Name.Namespace, Labels: map[string]string{}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{}, // the field is required, also when empty
	}
	if s.Service != "" {
		o.Labels[discoveryv1.LabelServiceName] = s.Service
	}
	if s.Headless {
		o.Labels[corev1.IsHeadlessService] = ""
	}
	if s.IPv6 {
		o.AddressType = discoveryv1.AddressTypeIPv6
	}
	for _, p := range s.Ports {
		proto, port, name := corev1.Protocol(p.Protocol.String()), int32(p.Port), p.Name
		o.Ports = append(o.Ports, discoveryv1.EndpointPort{Name: &name, Protocol: &proto, Port: &port})
	}
	for _, e := range s.Endpoints {
		o.Endpoints = append(o.Endpoints, sliceEndpoint(e, s.Name.Namespace))
	}
	return object("EndpointSlice", s.Name, &o)
}

// sliceEndpoint renders one endpoint.
func sliceEndpoint(e model.Endpoint, namespace string) discoveryv1.Endpoint {
	out := discoveryv1.Endpoint{
		Addresses:  []string{e.Address.String()},
		Conditions: discoveryv1.EndpointConditions{Ready: &e.Ready, Serving: &e.Serving, Terminating: &e.Terminating},
		NodeName:   ref(e.Node), Zone: ref(e.Zone), Hostname: ref(e.Hostname),
	}
	if e.Pod != "" {
		out.TargetRef = &corev1.ObjectReference{Kind: "Pod", Namespace: namespace, Name: e.Pod}
	}
	if len(e.HintZones)+len(e.HintNodes) > 0 {
		out.Hints = &discoveryv1.EndpointHints{}
		for _, z := range e.HintZones {
			out.Hints.ForZones = append(out.Hints.ForZones, discoveryv1.ForZone{Name: z})
		}
		for _, n := range e.HintNodes {
			out.Hints.ForNodes = append(out.Hints.ForNodes, discoveryv1.ForNode{Name: n})
		}
	}
	return out
}

// ref returns a pointer to s, nil for "".
func ref(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// NodeObject returns the Node as Kubernetes has it. Key and endpoints become
// annotations when set.
func NodeObject(n *model.Node) (Object, error) {
	o := corev1.Node{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: map[string]string{corev1.LabelHostname: n.Name}},
	}
	if n.Zone != "" {
		o.Labels[corev1.LabelTopologyZone] = n.Zone
	}
	if n.PublicKey != "" {
		o.Annotations = claimAnnotations(NodeClaim{PublicKey: n.PublicKey, Endpoints: n.Endpoints})
	}
	o.Spec.PodCIDRs = prefixStrings(n.PodCIDRs)
	if len(n.PodCIDRs) > 0 {
		o.Spec.PodCIDR = o.Spec.PodCIDRs[0]
	}
	for _, a := range n.Addresses {
		o.Status.Addresses = append(o.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
	}
	o.Status.Addresses = append(o.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeHostName, Address: n.Name})
	o.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	return object("Node", model.Name{Name: n.Name}, &o)
}

// NamespaceObject returns the Namespace as Kubernetes has it.
func NamespaceObject(n *model.Namespace) (Object, error) {
	o := corev1.Namespace{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"},
		ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: n.Labels},
	}
	o.Status.Phase = corev1.NamespaceActive
	obj, err := object("Namespace", model.Name{Name: n.Name}, &o)
	obj.Namespace = n
	return obj, err
}

func addrStrings(list []netip.Addr) []string {
	var out []string
	for _, a := range list {
		out = append(out, a.String())
	}
	return out
}

func prefixStrings(list []netip.Prefix) []string {
	var out []string
	for _, p := range list {
		out = append(out, p.String())
	}
	return out
}
