package cluster

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"

	"github.com/netctl/netctl/internal/model"
)

// Object is one Kubernetes object as a user or the lab wrote it. Of the four
// typed fields the one of its Kind is set; other kinds have Raw only.
type Object struct {
	Kind string     // "Pod"
	Name model.Name // Namespace is "" for cluster-scoped kinds
	File string     // where it was read, "" when made
	Line int
	Raw  []byte // YAML, one document

	Pod        *Pod
	Deployment *Deployment
	Service    *Service
	Namespace  *model.Namespace
}

// Pod is a pod as the lab runs it.
type Pod struct {
	model.Pod    // Finished follows Phase when Phase is set
	Containers   []Container
	Phase        string // status.phase: Pending, Running, Succeeded, Failed
	Ready        bool   // condition Ready (and ContainersReady)
	Owner        string // name of the Deployment that it belongs to, "" when bare
	HostIPs      []string
	DNSPolicy    string // spec.dnsPolicy, never ""
	Nameservers  []string
	Searches     []string
	DNSOptions   []string // "ndots:5"
	NodeSelector map[string]string

	raw []byte // the manifest that it came from, JSON: keeps what netctl does not know
}

// Container is one command of a pod.
type Container struct {
	Name       string
	Image      string
	Command    []string
	Args       []string
	Env        []EnvVar
	WorkingDir string
}

// EnvVar is one variable of a container's environment.
type EnvVar struct {
	Name  string
	Value string
	Field string // downward API path such as status.podIP; Value is empty then
}

// Deployment is a number of equal pods.
type Deployment struct {
	Name     model.Name
	Labels   map[string]string
	Replicas int
	Selector map[string]string // spec.selector.matchLabels
	Template Pod               // Name.Name is empty

	raw []byte
}

// Service is a Service with what the endpoint controller needs.
type Service struct {
	model.Service
	Labels         map[string]string
	Selector       map[string]string
	TargetPorts    []TargetPort // one for each of Ports
	IPFamilyPolicy string       // SingleStack, PreferDualStack, RequireDualStack or ""
	IPFamilies     []string     // "IPv4", "IPv6"

	raw []byte
}

// TargetPort is where a service port leads on the pod: a number or the name of
// a container port.
type TargetPort struct {
	Name string
	Port uint16
}

// Resolve returns the port number of t on pod, and whether there is one: a
// named port must be declared by the pod with the same protocol.
func (t TargetPort) Resolve(pod *model.Pod, proto model.Protocol) (uint16, bool) {
	if t.Name == "" {
		return t.Port, t.Port != 0
	}
	i := slices.IndexFunc(pod.Ports, func(p model.ContainerPort) bool {
		return p.Name == t.Name && p.Protocol == proto
	})
	if i < 0 {
		return 0, false
	}
	return pod.Ports[i].Port, true
}

// ParseManifests reads the YAML or JSON documents of one file. It returns the
// objects that are good, in order, and one joined error of Problems for those
// that are not. Kinds that netctl does not know are returned with Raw only.
func ParseManifests(data []byte, name string) ([]Object, error) {
	docs, problems := decodeFile(data, name)
	var out []Object
	errs := make([]error, 0, len(problems))
	for _, p := range problems {
		errs = append(errs, p)
	}
	for _, d := range docs {
		o, err := manifestObject(d)
		if err != nil {
			errs = append(errs, Problem{File: name, Line: d.line, Text: d.describe() + ": " + err.Error()})
			continue
		}
		out = append(out, o)
	}
	return out, errors.Join(errs...)
}

// manifestObject converts a document of a user's manifest.
func manifestObject(d document) (Object, error) {
	raw, err := yaml.JSONToYAML(d.json)
	if err != nil {
		return Object{}, err
	}
	o := Object{Kind: d.kind, Name: model.Name{Namespace: d.namespace, Name: d.name}, File: d.file, Line: d.line, Raw: raw}
	switch kindOf(d) {
	case kindPod:
		var p corev1.Pod
		if err := d.into(&p); err != nil {
			return Object{}, err
		}
		p.Namespace = d.namespace
		o.Pod, err = manifestPod(&p, d.json)
	case kindDeployment:
		o.Deployment, err = manifestDeployment(d)
	case kindService:
		o.Service, err = manifestService(d)
	case kindNamespace:
		var n corev1.Namespace
		if err := d.into(&n); err != nil {
			return Object{}, err
		}
		o.Namespace, err = convertNamespace(&n)
	case kindUnknown:
	default: // only to find out whether it is good
		if _, err = d.toModel(kindOf(d)); errors.Is(err, errIgnored) {
			err = nil
		}
	}
	return o, err
}

// manifestPod converts a pod or the template of one.
func manifestPod(o *corev1.Pod, raw []byte) (*Pod, error) {
	m, err := convertPod(o)
	if err != nil {
		return nil, err
	}
	p := &Pod{
		Pod: *m, Phase: string(o.Status.Phase), raw: raw,
		DNSPolicy:    string(cmp.Or(o.Spec.DNSPolicy, corev1.DNSClusterFirst)),
		NodeSelector: o.Spec.NodeSelector,
	}
	if len(o.Spec.Containers) == 0 {
		return nil, errors.New("spec.containers is empty")
	}
	for _, c := range o.Spec.Containers {
		if !validName(c.Name) || strings.Contains(c.Name, ".") { // it becomes a file's name, too
			return nil, fmt.Errorf("spec.containers: name %q is not a DNS label (RFC 1123): use lower-case letters, digits and dashes", c.Name)
		}
		if slices.ContainsFunc(p.Containers, func(x Container) bool { return x.Name == c.Name }) {
			return nil, fmt.Errorf("spec.containers: name %q is used twice", c.Name)
		}
		p.Containers = append(p.Containers, manifestContainer(&c))
	}
	if cfg := o.Spec.DNSConfig; cfg != nil {
		p.Nameservers, p.Searches = cfg.Nameservers, cfg.Searches
		for _, opt := range cfg.Options {
			text := opt.Name
			if opt.Value != nil {
				text += ":" + *opt.Value
			}
			p.DNSOptions = append(p.DNSOptions, text)
		}
	}
	for _, owner := range o.OwnerReferences {
		if owner.Kind == "Deployment" {
			p.Owner = owner.Name
		}
	}
	for _, ip := range o.Status.HostIPs {
		p.HostIPs = append(p.HostIPs, ip.IP)
	}
	for _, c := range o.Status.Conditions {
		p.Ready = p.Ready || (c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue)
	}
	return p, nil
}

// manifestContainer converts one container.
func manifestContainer(c *corev1.Container) Container {
	out := Container{Name: c.Name, Image: c.Image, Command: c.Command, Args: c.Args, WorkingDir: c.WorkingDir}
	for _, e := range c.Env {
		v := EnvVar{Name: e.Name, Value: e.Value}
		if e.ValueFrom != nil && e.ValueFrom.FieldRef != nil {
			v.Field = e.ValueFrom.FieldRef.FieldPath
		}
		out.Env = append(out.Env, v)
	}
	return out
}

// manifestDeployment converts a Deployment and its template.
func manifestDeployment(d document) (*Deployment, error) {
	var o appsv1.Deployment
	if err := d.into(&o); err != nil {
		return nil, err
	}
	out := &Deployment{
		Name:   model.Name{Namespace: d.namespace, Name: d.name},
		Labels: o.Labels, Replicas: int(deref(o.Spec.Replicas, 1)), raw: d.json,
	}
	if out.Replicas < 0 {
		return nil, fmt.Errorf("spec.replicas %d is negative", out.Replicas)
	}
	if o.Spec.Selector != nil {
		out.Selector = o.Spec.Selector.MatchLabels
	}
	for k, v := range out.Selector {
		if o.Spec.Template.Labels[k] != v {
			return nil, fmt.Errorf("spec.selector does not match the template's labels: %s=%s", k, v)
		}
	}
	pod := corev1.Pod{ObjectMeta: o.Spec.Template.ObjectMeta, Spec: o.Spec.Template.Spec}
	pod.Namespace = d.namespace
	raw, err := json.Marshal(&pod)
	if err != nil {
		return nil, err
	}
	t, err := manifestPod(&pod, raw)
	if err != nil {
		return nil, fmt.Errorf("spec.template: %w", err)
	}
	out.Template = *t
	return out, nil
}

// manifestService converts a Service with what an endpoint controller needs.
func manifestService(d document) (*Service, error) {
	var o corev1.Service
	if err := d.into(&o); err != nil {
		return nil, err
	}
	m, err := convertService(&o)
	if err != nil {
		return nil, err
	}
	s := &Service{Service: *m, Labels: o.Labels, Selector: o.Spec.Selector, raw: d.json}
	for _, f := range o.Spec.IPFamilies {
		s.IPFamilies = append(s.IPFamilies, string(f))
	}
	if o.Spec.IPFamilyPolicy != nil {
		s.IPFamilyPolicy = string(*o.Spec.IPFamilyPolicy)
	}
	for _, p := range o.Spec.Ports {
		t := TargetPort{Port: uint16(p.Port)}
		switch {
		case p.TargetPort.Type == intstr.String && p.TargetPort.StrVal != "":
			t = TargetPort{Name: p.TargetPort.StrVal}
		case p.TargetPort.IntVal < 0 || p.TargetPort.IntVal > 65535:
			return nil, fmt.Errorf("spec.ports.targetPort %d is not a port", p.TargetPort.IntVal)
		case p.TargetPort.IntVal != 0:
			t.Port = uint16(p.TargetPort.IntVal)
		}
		s.TargetPorts = append(s.TargetPorts, t)
	}
	return s, nil
}
