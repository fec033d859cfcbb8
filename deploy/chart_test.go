package deploy_test

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/netctl/netctl/deploy"
)

// The parts of the objects that these tests look at.
type (
	daemonSet struct {
		Spec struct {
			UpdateStrategy struct {
				RollingUpdate map[string]int `json:"rollingUpdate"`
			} `json:"updateStrategy"`
			Template struct {
				Metadata struct {
					Annotations map[string]string `json:"annotations"`
				} `json:"metadata"`
				Spec podSpec `json:"spec"`
			} `json:"template"`
		} `json:"spec"`
	}
	podSpec struct {
		HostNetwork, HostPID, HostIPC bool
		DNSPolicy                     string           `json:"dnsPolicy"`
		PriorityClassName             string           `json:"priorityClassName"`
		Tolerations                   []map[string]any `json:"tolerations"`
		InitContainers                []container      `json:"initContainers"`
		Grace                         int              `json:"terminationGracePeriodSeconds"`
		Containers                    []container      `json:"containers"`
		Volumes                       []map[string]any `json:"volumes"`
	}
	container struct {
		Image           string         `json:"image"`
		RestartPolicy   string         `json:"restartPolicy"`
		Args            []string       `json:"args"`
		Env             []any          `json:"env"`
		LivenessProbe   any            `json:"livenessProbe"`
		ImagePullPolicy string         `json:"imagePullPolicy"`
		Ports           []any          `json:"ports"`
		SecurityContext map[string]any `json:"securityContext"`
		Resources       map[string]any `json:"resources"`
		VolumeMounts    []struct {
			Name, MountPath, MountPropagation string
			ReadOnly                          bool
		} `json:"volumeMounts"`
	}
)

func decode[T any](t *testing.T, docs []deploy.Document, kind, name string) T {
	t.Helper()
	var out T
	for _, d := range docs {
		if d.Kind != kind || d.Name != name {
			continue
		}
		if err := yaml.Unmarshal([]byte(d.Text), &out); err != nil {
			t.Fatal(err)
		}
		return out
	}
	t.Fatalf("there is no %s %s", kind, name)
	return out
}

func render(t *testing.T, set ...string) []deploy.Document {
	t.Helper()
	v := deploy.Values{}
	for _, text := range set {
		var err error
		if v, err = v.Set(text); err != nil {
			t.Fatal(err)
		}
	}
	docs, err := deploy.Render(deploy.Options{Values: v})
	if err != nil {
		t.Fatal(err)
	}
	return docs
}

// renderPools renders the chart with addresses for load balancers.
func renderPools(t *testing.T, pools ...any) []deploy.Document {
	t.Helper()
	docs, err := deploy.Render(deploy.Options{Values: deploy.Values{"config": map[string]any{"loadBalancerPools": pools}}})
	if err != nil {
		t.Fatal(err)
	}
	return docs
}

// TestAgentIsConfined: the agent's container has what it needs and nothing
// else.
func TestAgentIsConfined(t *testing.T) {
	t.Parallel()
	ds := decode[daemonSet](t, render(t), "DaemonSet", "netctl")
	pod := ds.Spec.Template.Spec
	if len(pod.Containers) != 1 || len(pod.InitContainers) != 1 {
		t.Fatalf("%d containers and %d init containers, want one of each", len(pod.Containers), len(pod.InitContainers))
	}
	agent, holder := pod.Containers[0], pod.InitContainers[0]
	if holder.RestartPolicy != "Always" || holder.LivenessProbe != nil || holder.Resources["limits"] != nil || len(holder.Ports) > 0 {
		t.Errorf("the holder could be ended with the agent: %+v", holder)
	}
	if diff := cmp.Diff(holder.SecurityContext, agent.SecurityContext); diff != "" {
		t.Errorf("the holder's agent may do something else (-holder +agent):\n%s", diff)
	}
	if diff := cmp.Diff(holder.VolumeMounts, agent.VolumeMounts); diff != "" {
		t.Errorf("the holder's agent sees something else (-holder +agent):\n%s", diff)
	}
	if diff := cmp.Diff(holder.Env, agent.Env); diff != "" || holder.Image != agent.Image {
		t.Errorf("the holder's agent is another one: %s (-holder +agent):\n%s", holder.Image, diff)
	}
	where := "/run/netctl/holders/$(POD_NAME).sock"
	if !slices.Contains(agent.Args, "--hold-socket="+where) || !slices.Contains(holder.Args, "--socket="+where) || !slices.Contains(holder.Args, "--stand-in") {
		t.Errorf("they do not find each other: %v, %v", agent.Args, holder.Args)
	}
	if limit := fmt.Sprintf("--drain-limit=%ds", pod.Grace-30); !slices.Contains(agent.Args, limit) || !slices.Contains(holder.Args, limit) {
		t.Errorf("grace of %d s with %v, %v", pod.Grace, agent.Args, holder.Args)
	}
	want := map[string]any{
		"runAsUser": 0.0, "runAsGroup": 0.0, "privileged": false, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
		"capabilities": map[string]any{
			"drop": []any{"ALL"}, "add": []any{"NET_ADMIN", "SYS_ADMIN", "NET_RAW", "NET_BIND_SERVICE"},
		},
		"seccompProfile":  map[string]any{"type": "RuntimeDefault"},
		"appArmorProfile": map[string]any{"type": "Unconfined"},
		"seLinuxOptions":  map[string]any{"type": "spc_t", "level": "s0"},
	}
	if diff := cmp.Diff(agent.SecurityContext, want); diff != "" {
		t.Errorf("securityContext differs (-got +want):\n%s", diff)
	}
	if !pod.HostNetwork || pod.HostPID || pod.HostIPC || pod.DNSPolicy != "Default" || pod.PriorityClassName != "system-node-critical" {
		t.Errorf("the pod's place on the node is wrong: %+v", pod)
	}
	if len(agent.Ports) > 0 {
		t.Errorf("ports %v: with hostNetwork they are host ports, and two agents do not fit on a node during an update", agent.Ports)
	}
	if diff := cmp.Diff(pod.Tolerations, []map[string]any{{"operator": "Exists"}}); diff != "" {
		t.Errorf("tolerations differ (-got +want):\n%s", diff)
	}
	if diff := cmp.Diff(ds.Spec.UpdateStrategy.RollingUpdate, map[string]int{"maxSurge": 1, "maxUnavailable": 0}); diff != "" {
		t.Errorf("updateStrategy differs (-got +want):\n%s", diff)
	}
	if agent.Resources["limits"] != nil || agent.Resources["requests"] == nil {
		t.Errorf("resources %v, want requests and no limits", agent.Resources)
	}
	var writable []string
	for _, m := range agent.VolumeMounts {
		if !m.ReadOnly {
			writable = append(writable, m.MountPath)
		}
	}
	slices.Sort(writable)
	if diff := cmp.Diff(writable, []string{
		"/dev/net/tun", "/etc/cni/net.d", "/opt/cni/bin", "/run/netctl", "/run/netctl-pod", "/run/netns", "/var/lib/netctl",
	}); diff != "" {
		t.Errorf("what is writable differs (-got +want):\n%s", diff)
	}
	if image, err := deploy.Image(deploy.Options{}); err != nil || agent.Image != image || agent.ImagePullPolicy != "IfNotPresent" {
		t.Errorf("image %s (%s), want %s, %v", agent.Image, agent.ImagePullPolicy, image, err)
	}
}

// TestConfigurationRollsTheAgents: another configuration is another pod
// template, the same one is the same.
func TestConfigurationRollsTheAgents(t *testing.T) {
	t.Parallel()
	sum := func(set ...string) string {
		ds := decode[daemonSet](t, render(t, set...), "DaemonSet", "netctl")
		return ds.Spec.Template.Metadata.Annotations["checksum/config"]
	}
	if sum() == "" || sum() != sum("podLabels.a=b") || sum() == sum("config.mtu=1400") {
		t.Errorf("checksums %q, %q with another label, %q with another MTU", sum(), sum("podLabels.a=b"), sum("config.mtu=1400"))
	}
}

// TestMountsFollowTheConfiguration: a directory that is configured is the one
// that is mounted, and a kubelet.conf that is not used is not mounted.
func TestMountsFollowTheConfiguration(t *testing.T) {
	t.Parallel()
	docs := render(t, "config.stateDir=/run/other", "config.cniBinDir=/usr/lib/cni", "config.kubeletConf=")
	text := string(deploy.YAML(docs))
	for _, gone := range []string{"/run/netctl\"", "/opt/cni/bin", "/etc/kubernetes", "kubelet-conf\n"} {
		if strings.Contains(text, gone) {
			t.Errorf("%s is still there", gone)
		}
	}
	pod := decode[daemonSet](t, docs, "DaemonSet", "netctl").Spec.Template.Spec
	mounts := map[string]string{}
	for _, m := range pod.Containers[0].VolumeMounts {
		mounts[m.Name] = m.MountPath
	}
	for _, v := range pod.Volumes {
		name, _ := v["name"].(string)
		if host, ok := v["hostPath"].(map[string]any); ok && host["path"] != mounts[name] {
			t.Errorf("%v of the node is at %q in the container", host["path"], mounts[name])
		}
		delete(mounts, name)
	}
	if len(mounts) > 0 {
		t.Errorf("mounts without a volume: %v", mounts)
	}
}

// TestConfigurationIsDocumented: the file that the agent reads has every option
// of values.yaml, in the same order, with the same words about it.
func TestConfigurationIsDocumented(t *testing.T) {
	t.Parallel()
	cm := decode[struct {
		Data map[string]string `json:"data"`
	}](t, render(t), "ConfigMap", "netctl")
	_, below, _ := strings.Cut(string(deploy.ValuesFile()), "\nconfig:\n")
	below, _, _ = strings.Cut(below, "\n\n")
	_, file, _ := strings.Cut(cm.Data["config.yaml"], "\n#\n")
	if len(file) < 500 {
		t.Fatalf("config.yaml has another beginning than this test knows:\n%s", cm.Data["config.yaml"])
	}
	plain := strings.NewReplacer(`"`, "")
	var got, want []string
	for line := range strings.Lines(file) {
		got = append(got, strings.TrimSpace(plain.Replace(line)))
	}
	for line := range strings.Lines(below) {
		want = append(want, strings.TrimSpace(plain.Replace(line)))
	}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("ConfigMap and values.yaml differ (-ConfigMap +values.yaml):\n%s", diff)
	}
}

// TestEveryOptionHasASchema: what values.yaml has the schema knows, and nothing
// else.
func TestEveryOptionHasASchema(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("chart/values.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	type properties struct {
		Properties map[string]struct {
			Properties map[string]any `json:"properties"`
		} `json:"properties"`
	}
	var schema properties
	if err := yaml.Unmarshal(data, &schema); err != nil {
		t.Fatal(err)
	}
	values, err := deploy.Defaults()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(slices.Sorted(maps.Keys(schema.Properties)), slices.Sorted(maps.Keys(values))); diff != "" {
		t.Errorf("options differ (-schema +values.yaml):\n%s", diff)
	}
	for _, k := range []string{"config", "image"} {
		have, _ := values[k].(map[string]any)
		if diff := cmp.Diff(slices.Sorted(maps.Keys(schema.Properties[k].Properties)), slices.Sorted(maps.Keys(have))); diff != "" {
			t.Errorf("options below %s differ (-schema +values.yaml):\n%s", k, diff)
		}
	}
}

type role struct {
	Rules []struct {
		APIGroups, Resources, ResourceNames, Verbs []string
	} `json:"rules"`
}

// permissions lists what a role allows, a line each.
func (r role) permissions() []string {
	var out []string
	for _, rule := range r.Rules {
		for _, group := range rule.APIGroups {
			for _, resource := range rule.Resources {
				if group != "" {
					resource += "." + group
				}
				if len(rule.ResourceNames) > 0 {
					resource += " " + strings.Join(rule.ResourceNames, ",")
				}
				for _, verb := range rule.Verbs {
					out = append(out, verb+" "+resource)
				}
			}
		}
	}
	slices.Sort(out)
	return out
}

// TestPermissions: what agents may do is a list that is changed on purpose. The
// README says what each is for.
func TestPermissions(t *testing.T) {
	t.Parallel()
	docs := render(t)
	want := []string{
		"create blocks.netctl.io",
		"create events",
		"delete blocks.netctl.io",
		"get blocks.netctl.io",
		"get nodes",
		"list blockpools.netctl.io",
		"list blocks.netctl.io",
		"list endpointslices.discovery.k8s.io",
		"list namespaces",
		"list networkpolicies.networking.k8s.io",
		"list nodes",
		"list pods",
		"list servicecidrs.networking.k8s.io",
		"list services",
		"patch nodes",
		"watch blockpools.netctl.io",
		"watch blocks.netctl.io",
		"watch endpointslices.discovery.k8s.io",
		"watch namespaces",
		"watch networkpolicies.networking.k8s.io",
		"watch nodes",
		"watch pods",
		"watch servicecidrs.networking.k8s.io",
		"watch services",
	}
	if diff := cmp.Diff(decode[role](t, docs, "ClusterRole", "netctl").permissions(), want); diff != "" {
		t.Errorf("the ClusterRole differs (-got +want):\n%s", diff)
	}
	with := decode[role](t, renderPools(t, "203.0.113.0/28"), "ClusterRole", "netctl").permissions()
	more := slices.Sorted(slices.Values(append(slices.Clone(want), "patch services/status")))
	if diff := cmp.Diff(with, more); diff != "" {
		t.Errorf("the ClusterRole with load balancers differs (-got +want):\n%s", diff)
	}
	want = []string{"create services", "get configmaps kubeadm-config,kubelet-config", "get services kube-dns"}
	if diff := cmp.Diff(decode[role](t, docs, "Role", "netctl").permissions(), want); diff != "" {
		t.Errorf("the Role differs (-got +want):\n%s", diff)
	}
}

// TestEveryWriteIsGuarded: for every kind that the roles let agents write there
// is a policy that denies, also when it cannot be evaluated.
func TestEveryWriteIsGuarded(t *testing.T) {
	t.Parallel()
	type policy struct {
		Spec struct {
			FailurePolicy    string
			MatchConstraints struct {
				ResourceRules []struct{ Resources, Operations []string }
			}
			MatchConditions []struct{ Expression string }
		} `json:"spec"`
	}
	type binding struct {
		Spec struct {
			PolicyName        string
			ValidationActions []string
			MatchResources    any
		} `json:"spec"`
	}
	docs, err := deploy.Render(deploy.Options{Namespace: "net"})
	if err != nil {
		t.Fatal(err)
	}
	guarded := map[string]bool{}
	for _, d := range docs {
		if d.Kind != "ValidatingAdmissionPolicy" {
			continue
		}
		p := decode[policy](t, docs, d.Kind, d.Name).Spec
		b := decode[binding](t, docs, "ValidatingAdmissionPolicyBinding", d.Name).Spec
		if p.FailurePolicy != "Fail" || b.PolicyName != d.Name || !slices.Equal(b.ValidationActions, []string{"Deny"}) || b.MatchResources != nil {
			t.Errorf("policy %s does not deny: %+v %+v", d.Name, p, b)
		}
		if len(p.MatchConditions) != 1 || p.MatchConditions[0].Expression != "request.userInfo.username == 'system:serviceaccount:net:netctl'" {
			t.Errorf("policy %s is for somebody else: %v", d.Name, p.MatchConditions)
		}
		for _, r := range p.MatchConstraints.ResourceRules {
			for _, resource := range r.Resources {
				for _, op := range r.Operations {
					guarded[op+" "+resource] = true
				}
			}
		}
	}
	for _, want := range []string{
		"UPDATE nodes", "UPDATE nodes/*", "CREATE services", "UPDATE services", // of the core group
		"CREATE *", "UPDATE *", "DELETE *", // of netctl.io
	} {
		if !guarded[want] {
			t.Errorf("no policy looks at %s", want)
		}
	}
}

// TestStatusesAreWrittenOnlyForPools: where no addresses are to be given to load
// balancers, the policy lets nothing of a Service be changed; elsewhere it knows the
// pools.
func TestStatusesAreWrittenOnlyForPools(t *testing.T) {
	t.Parallel()
	type policy struct {
		Spec struct {
			Variables   []struct{ Name, Expression string }
			Validations []struct{ Expression, Message string }
		} `json:"spec"`
	}
	without := decode[policy](t, render(t), "ValidatingAdmissionPolicy", "netctl-services").Spec
	for _, v := range without.Validations {
		if strings.Contains(v.Expression, "'UPDATE'") {
			t.Errorf("without pools, an update is considered: %s", v.Expression)
		}
	}
	if !strings.HasPrefix(without.Validations[0].Expression, "request.operation == 'CREATE' && ") {
		t.Errorf("without pools, more than a creation is allowed: %s", without.Validations[0].Expression)
	}
	with := decode[policy](t, renderPools(t, "203.0.113.0/28", "2001:db8::1"), "ValidatingAdmissionPolicy", "netctl-services").Spec
	if len(with.Variables) == 0 || with.Variables[0].Expression != `["203.0.113.0/28","2001:db8::1"]` {
		t.Errorf("variables %v, want the pools", with.Variables)
	}
	if !slices.ContainsFunc(with.Validations, func(v struct{ Expression, Message string }) bool {
		return strings.HasPrefix(v.Expression, "request.operation != 'UPDATE' || variables.ingress.all(i, ") && strings.Contains(v.Expression, "variables.pools.exists(p, ")
	}) {
		t.Errorf("nothing looks at the addresses: %v", with.Validations)
	}
}

// TestPermissionsAreExplained: the README speaks of every resource, capability
// and policy.
func TestPermissionsAreExplained(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	readme := string(data)
	docs := renderPools(t, "203.0.113.0/28")
	words := []string{}
	for _, kind := range []string{"ClusterRole", "Role"} {
		for _, p := range decode[role](t, docs, kind, "netctl").permissions() {
			resource := strings.Fields(p)[1]
			resource, _, _ = strings.Cut(resource, ".")
			words = append(words, resource)
		}
	}
	security := decode[daemonSet](t, docs, "DaemonSet", "netctl").Spec.Template.Spec.Containers[0].SecurityContext
	capabilities, _ := security["capabilities"].(map[string]any)
	for _, c := range capabilities["add"].([]any) {
		words = append(words, "| "+c.(string)+" |")
	}
	for _, d := range docs {
		if d.Kind == "ValidatingAdmissionPolicy" {
			words = append(words, "| `"+d.Name+"` |")
		}
	}
	for _, w := range words {
		if !strings.Contains(readme, w) {
			t.Errorf("README.md does not say what %s is for", w)
		}
	}
}
