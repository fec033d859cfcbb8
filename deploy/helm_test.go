package deploy_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netctl/netctl/deploy"
)

// helm finds the real program: $HELM, else helm in $PATH. `make chart` builds it
// and sets $HELM.
func helm(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("HELM"); path != "" {
		return path // if it is not there, the test fails
	}
	path, err := exec.LookPath("helm")
	if err != nil {
		t.Skip("no helm here; `make chart` builds it and runs this test")
	}
	return path
}

// TestHelmRendersTheSame: for the same options, Helm and this package make the
// same documents.
func TestHelmRendersTheSame(t *testing.T) {
	t.Parallel()
	program := helm(t)
	tests := []struct {
		name, namespace, values string
		set                     []string
	}{
		{name: "defaults"},
		{name: "namespace", namespace: "net"},
		{
			name: "set",
			set: []string{
				"config.mtu=1400,config.workers=2", "config.dns=on", `podLabels.example\.com/team=a\,b`,
				"config.clusterCIDRs={10.0.0.0/8,fd00::/48}", "config.kubeletConf=", "config.apiServer=https://10.0.0.1:6443",
				"image.tag=v9", "imagePullSecrets=null", "tolerations=null", `nodeSelector.kubernetes\.io/os=null`,
			},
		},
		{
			name: "file",
			values: `
image: {repository: "registry.example:5000/netctl", digest: "sha256:` + strings.Repeat("0f", 32) + `", pullPolicy: Always}
imagePullSecrets: [{name: registry}]
config:
  clusterDomain: 'say "no"'
  stateDir: /run/other
  wireguardPort: 4500
  dns: "off"
resources: {limits: {memory: 1Gi}, requests: {cpu: 1}}
updateStrategy: {type: OnDelete, rollingUpdate: null}
affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: a, operator: Exists}]}]}}}
tolerations: [{key: a, operator: Equal, value: "true", effect: NoSchedule}]
podAnnotations: {example.com/text: "two\nlines", example.com/number: "1"}
terminationGracePeriodSeconds: 30
`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if tt.namespace == "" {
				tt.namespace = deploy.DefaultNamespace
			}
			args := []string{"template", "anything", "chart", "--namespace", tt.namespace}
			values, err := deploy.ParseValues([]byte(tt.values), "test")
			if err != nil {
				t.Fatal(err)
			}
			if tt.values != "" {
				file := filepath.Join(t.TempDir(), "values.yaml")
				if err := os.WriteFile(file, []byte(tt.values), 0o600); err != nil {
					t.Fatal(err)
				}
				args = append(args, "--values", file)
			}
			for _, text := range tt.set {
				args = append(args, "--set", text)
				if values, err = values.Set(text); err != nil {
					t.Fatal(err)
				}
			}
			docs, err := deploy.Render(deploy.Options{Namespace: tt.namespace, Values: values})
			if err != nil {
				t.Fatal(err)
			}
			got := byName(t, deploy.YAML(docs))
			want := byName(t, runHelm(t, program, args...))
			if len(got) != len(docs) || len(got) < 10 {
				t.Errorf("%d documents for %d objects", len(got), len(docs))
			}
			if diff := cmp.Diff(got, want); diff != "" {
				t.Errorf("documents differ (-ours +helm):\n%s", diff)
			}
		})
	}
}

// TestHelmRefusesTheSame: Helm reads our schema as we do.
func TestHelmRefusesTheSame(t *testing.T) {
	t.Parallel()
	program := helm(t)
	for _, set := range []string{
		"hostNetwork=false", "config.MTU=1400", "config.mtu=large", "config.wireguardPort=0", "config.proxy=iptables",
		"config.stateDir=run", "config.proxy=null", "tolerations=all",
	} {
		v, err := deploy.Values{}.Set(set)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := deploy.Render(deploy.Options{Values: v}); err == nil {
			t.Errorf("we take %s", set)
		}
		if out, err := exec.CommandContext(t.Context(), program, "template", "anything", "chart", "--set", set).CombinedOutput(); err == nil {
			t.Errorf("helm takes %s", set)
		} else if !bytes.Contains(out, []byte("schema")) {
			t.Errorf("helm refuses %s for another reason than the schema: %s", set, out)
		}
	}
}

func TestHelmLint(t *testing.T) {
	t.Parallel()
	runHelm(t, helm(t), "lint", "--strict", "chart")
}

func runHelm(t *testing.T, program string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	home := t.TempDir()
	cmd.Env = append(os.Environ(), "HELM_CACHE_HOME="+home, "HELM_CONFIG_HOME="+home, "HELM_DATA_HOME="+home)
	var talk bytes.Buffer
	cmd.Stderr = &talk
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("helm %v: %v\n%s%s", args, err, out, talk.Bytes())
	}
	return out
}

// byName cuts manifests into their documents, with the comments that they start
// with, by what each is called.
func byName(t *testing.T, manifests []byte) map[string]string {
	t.Helper()
	out := map[string]string{}
	for doc := range strings.SplitSeq("\n"+string(manifests), "\n---\n") {
		if doc = strings.TrimSpace(doc); doc == "" {
			continue
		}
		var kind, name, namespace string
		for line := range strings.SplitSeq(doc, "\n") {
			if v, ok := strings.CutPrefix(line, "kind: "); ok {
				kind = v
			}
			if v, ok := strings.CutPrefix(line, "  name: "); ok && name == "" {
				name = v
			}
			if v, ok := strings.CutPrefix(line, "  namespace: "); ok && namespace == "" {
				namespace = v
			}
		}
		key := kind + " " + namespace + "/" + name
		if _, twice := out[key]; twice || kind == "" || name == "" {
			t.Fatalf("a document without a name of its own: %q", key)
		}
		out[key] = doc
	}
	return out
}
