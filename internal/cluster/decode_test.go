package cluster

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// render writes what a file decodes to, one line each.
func render(data, file string) []string {
	docs, problems := decodeFile([]byte(data), file)
	var out []string
	for _, d := range docs {
		out = append(out, fmt.Sprintf("%d %s", d.line, d.describe()))
	}
	for _, p := range problems {
		out = append(out, p.Error())
	}
	return out
}

func TestDecodeFile(t *testing.T) {
	t.Parallel()
	const a = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n"
	const b = "apiVersion: v1\nkind: Pod\nmetadata: {name: b, namespace: x}\n"
	for _, tc := range []struct {
		name, file, data string
		want             []string
	}{
		{"nothing", "f.yaml", "", nil},
		{"comments only", "f.yaml", "# one\n---\n# two\n---\n\n", nil},
		{"one", "f.yaml", a, []string{"1 Pod default/a"}},
		{"byte order mark", "f.yaml", "\xef\xbb\xbf" + a, []string{"1 Pod default/a"}},
		{"carriage returns", "f.yaml", strings.ReplaceAll("---\n"+a+"---\n"+b, "\n", "\r\n"), []string{"2 Pod default/a", "6 Pod x/b"}},
		{"several", "f.yaml", "# head\n---\n\n# more\n" + a + "...\n--- # next\n" + b + "---\n", []string{"5 Pod default/a", "10 Pod x/b"}},
		{"on the marker's line", "f.yaml", a + "--- {apiVersion: v1, kind: Node, metadata: {name: n1}}\n", []string{"1 Pod default/a", "4 Node n1"}},
		{"marker without an end of line", "f.yaml", a + "---", []string{"1 Pod default/a"}},
		{"indented markers are text", "f.yaml", "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  annotations:\n    x: |\n      ---\n      y\n", []string{"1 Pod default/a"}},
		{"json", "f.json", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"}}`, []string{"1 Pod default/a"}},
		{"json with tabs, twice", "f.json", "{\n\t\"apiVersion\": \"v1\", \"kind\": \"Pod\",\n\t\"metadata\": {\"name\": \"a\"}\n}\n{\"apiVersion\":\"v1\",\"kind\":\"Node\",\"metadata\":{\"name\":\"n\"}}", []string{"1 Pod default/a", "5 Node n"}},
		{"yaml flow", "f.yaml", "{apiVersion: v1, kind: Pod, metadata: {name: a}}\n", []string{"1 Pod default/a"}},
		{"list", "f.yaml", "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: a}}\n- {apiVersion: v1, kind: Node, metadata: {name: n1}}\n- {kind: Pod}\n- {metadata: {name: q}}\n", []string{
			"1 Pod default/a (item 1 of a list)", "1 Node n1 (item 2 of a list)",
			"f.yaml:1: item 3: not a Kubernetes object: apiVersion or kind is missing", "f.yaml:1: item 4: not a Kubernetes object: apiVersion or kind is missing",
		}},
		{"typed list", "f.yaml", "apiVersion: v1\nkind: PodList\nitems:\n- metadata: {name: a}\n- metadata: {name: b, namespace: x}\n", []string{"1 Pod default/a (item 1 of a list)", "1 Pod x/b (item 2 of a list)"}},
		{"empty list", "f.yaml", "apiVersion: v1\nkind: List\nitems: []\n", nil},
		{"list in lists", "f.json", strings.Repeat(`{"apiVersion":"v1","kind":"List","items":[`, 6) + strings.Repeat("]}", 6), []string{"f.json:1: item 1: item 1: item 1: item 1: lists are nested too deep"}},
		{"cluster-scoped kinds have no namespace", "f.yaml", "apiVersion: v1\nkind: Node\nmetadata: {name: n1, namespace: x}\n", []string{"1 Node n1"}},
		{"unknown kinds may be named as they like", "f.yaml", "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: \"system:x\"}\n---\napiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n", []string{"1 ClusterRole system:x", "5 Kustomization default/"}},

		{"broken in the middle", "f.yaml", a + "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: c\n bad\n---\n" + b, []string{"1 Pod default/a", "11 Pod x/b", "f.yaml:9: did not find expected key"}},
		{"tab", "f.yaml", "apiVersion: v1\nkind: Pod\nmetadata:\n\tname: c\n", []string{"f.yaml:4: found character that cannot start any token"}},
		{"key twice", "f.yaml", a + "---\napiVersion: v1\nkind: Pod\nkind: Node\nmetadata: {name: c}\n", []string{"1 Pod default/a", `f.yaml:7: key "kind" already set in map`}},
		{"broken json", "f.json", "{\n\"apiVersion\": \"v1\",\n\"kind\": oops\n}", []string{"f.json:3: invalid character 'o' looking for beginning of value"}},
		{"cut json", "f.json", "{\n\"apiVersion\": ", []string{"f.json:1: unexpected EOF"}},
		{"good json, then broken", "f.yaml", "{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":{\"name\":\"a\"}}\n{]\n", []string{"1 Pod default/a", "f.yaml:2: invalid character ']' looking for beginning of object key string"}},
		{"not an object", "f.yaml", "# x\n- a\n- b\n", []string{"f.yaml:2: not a Kubernetes object: document: have array, want mapping"}},
		{"text", "f.yaml", "hello\n", []string{"f.yaml:1: not a Kubernetes object: document: have string, want mapping"}},
		{"a name that YAML takes for a truth value", "f.yaml", "apiVersion: v1\nkind: Node\nmetadata: {name: n}\n", []string{"f.yaml:1: not a Kubernetes object: metadata.name: have bool (YAML reads y, n, yes, no, on, off as one; quote it), want string"}},
		{"no kind", "f.yaml", "apiVersion: v1\nmetadata: {name: a}\n", []string{"f.yaml:1: not a Kubernetes object: apiVersion or kind is missing"}},
		{"no name", "f.yaml", "apiVersion: v1\nkind: Pod\n", []string{`f.yaml:1: Pod: metadata.name "" is not a lower-case DNS name`}},
		{"generated name", "f.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {generateName: x-}\n", []string{"f.yaml:1: Pod: generateName is not supported, give it a name"}},
		{"path as a name", "f.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: ../../x}\n", []string{`f.yaml:1: Pod: metadata.name "../../x" is not a lower-case DNS name`}},
		{"path as a namespace", "f.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: x, namespace: a/b}\n", []string{`f.yaml:1: Pod x: metadata.namespace "a/b" is not a lower-case DNS name`}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(tc.want, render(tc.data, tc.file)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// FuzzDecodeFile decodes and converts arbitrary files: nothing may panic or
// hang, lines are within the file, and a good document in front stays good
// whatever follows it.
func FuzzDecodeFile(f *testing.F) {
	for _, s := range []string{
		"apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, ports: [{containerPort: 80}]}]}\nstatus: {podIPs: [{ip: 10.0.0.1}]}\n",
		"apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {clusterIPs: [10.96.0.1, 'fd00::1'], ports: [{port: 80, targetPort: web}]}\n",
		"apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a}\naddressType: IPv6\nendpoints: [{addresses: ['fd00::1']}]\n",
		"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}}], ports: [{port: 1, endPort: 2}]}]}\n",
		"apiVersion: netctl.io/v1alpha1\nkind: Block\nmetadata: {name: 10-1-2-0-24}\nspec: {cidr: 10.1.2.0/24, node: n1}\n",
		"apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec: {replicas: 2, template: {spec: {containers: [{name: c}]}}}\n",
		"apiVersion: v1\nkind: PodList\nitems: [{metadata: {name: a}}]\n---\n- x\n...\n--- {a: &b [*b]}\n",
		"{\"apiVersion\":\"v1\",\"kind\":\"List\",\"items\":[{}]}{",
	} {
		f.Add([]byte(s))
	}
	const first = "apiVersion: v1\nkind: Node\nmetadata: {name: first}\n---\n"
	f.Fuzz(func(t *testing.T, data []byte) {
		lines := 1 + strings.Count(string(data), "\n")
		docs, problems := decodeFile(data, "f.yaml")
		for _, d := range docs {
			if d.line < 1 || d.line > lines {
				t.Fatalf("%s at line %d of %d", d.describe(), d.line, lines)
			}
			_, err := d.toModel(kindOf(d))
			if err != nil && strings.Contains(err.Error(), "\n") {
				t.Fatalf("an error of several lines: %q", err)
			}
		}
		for _, p := range problems {
			if p.Line < 1 || p.Line > lines+1 || p.Text == "" {
				t.Fatalf("problem %+v in a file of %d lines", p, lines)
			}
		}
		objects, err := ParseManifests(data, "f.yaml")
		for _, o := range objects {
			if o.Pod != nil {
				again(t, o, o.Pod)
			}
		}
		if (err != nil) != (len(problems) > 0) && err == nil {
			t.Fatalf("problems %v are not in the error", problems)
		}
		if !utf8.Valid(data) {
			return
		}
		docs, _ = decodeFile(append([]byte(first), data...), "f.yaml")
		if len(docs) == 0 || docs[0].name != "first" {
			t.Fatal("a good document was disturbed by what follows it")
		}
	})
}

// again writes a pod that was read, and reads it again.
func again(t *testing.T, o Object, p *Pod) {
	t.Helper()
	out, err := PodObject(p)
	if err != nil {
		t.Fatalf("%s was read but cannot be written: %v", o.Name, err)
	}
	back, err := ParseManifests(out.Raw, "back.yaml")
	if err != nil || len(back) != 1 {
		t.Fatalf("%s was written but cannot be read: %v\n%s", o.Name, err, out.Raw)
	}
	if diff := cmp.Diff(p.Pod, back[0].Pod.Pod, comparers()); diff != "" {
		t.Fatalf("%s changed (-was +is):\n%s", o.Name, diff)
	}
}
