package objects_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netctl/netctl/internal/cluster/objects"
)

// request is what the server was asked.
type request struct {
	Method, Path, Query, Type string
	Body                      any
}

// serve answers every request as an API server does: with a status code and an
// object, which is a Status when the code is an error.
func serve(t *testing.T, code int, answer objects.Object) (*objects.Client, *request) {
	t.Helper()
	var got request
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = request{Method: r.Method, Path: r.URL.Path, Query: r.URL.RawQuery, Type: r.Header.Get("Content-Type")}
		if data, err := io.ReadAll(r.Body); err == nil && len(data) > 0 {
			if err := json.Unmarshal(data, &got.Body); err != nil {
				t.Error(err)
			}
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		if err := json.NewEncoder(w).Encode(answer); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(server.Close)
	file := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf("apiVersion: v1\nkind: Config\nclusters: [{name: a, cluster: {server: %q}}]\n"+
		"contexts: [{name: a, context: {cluster: a, user: a}}]\ncurrent-context: a\nusers: [{name: a, user: {}}]\n", server.URL)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	client, err := objects.New(file)
	if err != nil {
		t.Fatal(err)
	}
	return client, &got
}

func status(code int, reason string) objects.Object {
	return objects.Object{"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "reason": reason}
}

var daemonSet = objects.Ref{APIVersion: "apps/v1", Kind: "DaemonSet", Namespace: "kube-system", Name: "netctl"}

func TestRequests(t *testing.T) {
	t.Parallel()
	pod := objects.Object{"apiVersion": "v1", "kind": "Pod", "metadata": objects.Object{"name": "p", "namespace": "n"}}
	list := objects.Object{"apiVersion": "v1", "kind": "PodList", "metadata": objects.Object{}, "items": []any{pod}}
	tests := []struct {
		name   string
		answer objects.Object
		do     func(c *objects.Client) error
		want   request
	}{
		{
			name: "get", answer: pod,
			do: func(c *objects.Client) error {
				o, err := c.Get(t.Context(), objects.Ref{APIVersion: "v1", Kind: "Pod", Namespace: "n", Name: "p"})
				if diff := cmp.Diff(o, pod); diff != "" {
					t.Errorf("object differs (-got +want):\n%s", diff)
				}
				return err
			},
			want: request{Method: "GET", Path: "/api/v1/namespaces/n/pods/p"},
		},
		{
			name: "list", answer: list,
			do: func(c *objects.Client) error {
				o, err := c.List(t.Context(), objects.Ref{APIVersion: "v1", Kind: "Pod", Namespace: "n"}, "a=b")
				if diff := cmp.Diff(o, []objects.Object{pod}); diff != "" {
					t.Errorf("objects differ (-got +want):\n%s", diff)
				}
				return err
			},
			want: request{Method: "GET", Path: "/api/v1/namespaces/n/pods", Query: "labelSelector=a%3Db"},
		},
		{
			name: "create", answer: pod,
			do:   func(c *objects.Client) error { return c.Create(t.Context(), pod) },
			want: request{Method: "POST", Path: "/api/v1/namespaces/n/pods", Type: "application/json", Body: pod},
		},
		{
			name: "merge", answer: objects.Object{"apiVersion": "v1", "kind": "Node", "metadata": objects.Object{"name": "a"}},
			do: func(c *objects.Client) error {
				return c.Merge(t.Context(), objects.Ref{APIVersion: "v1", Kind: "Node", Name: "a"}, objects.Object{"metadata": nil})
			},
			want: request{Method: "PATCH", Path: "/api/v1/nodes/a", Type: "application/merge-patch+json", Body: map[string]any{"metadata": nil}},
		},
		{
			name: "delete", answer: objects.Object{"apiVersion": "v1", "kind": "Status", "status": "Success"},
			do: func(c *objects.Client) error { return c.Delete(t.Context(), daemonSet) },
			want: request{
				Method: "DELETE", Path: "/apis/apps/v1/namespaces/kube-system/daemonsets/netctl", Type: "application/json",
				Body: map[string]any{"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Foreground"},
			},
		},
		{
			name: "plural of a policy", answer: objects.Object{"apiVersion": "v1", "kind": "Status", "status": "Success"},
			do: func(c *objects.Client) error {
				_, err := c.Get(t.Context(), objects.Ref{APIVersion: "admissionregistration.k8s.io/v1", Kind: "ValidatingAdmissionPolicy", Name: "a"})
				return err
			},
			want: request{Method: "GET", Path: "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/a"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			client, got := serve(t, http.StatusOK, tt.answer)
			if err := tt.do(client); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(*got, tt.want); diff != "" {
				t.Errorf("request differs (-got +want):\n%s", diff)
			}
		})
	}
}

func TestErrorsThatCallersKnow(t *testing.T) {
	t.Parallel()
	missing, _ := serve(t, http.StatusNotFound, status(http.StatusNotFound, "NotFound"))
	if _, err := missing.Get(t.Context(), daemonSet); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("get: %v", err)
	}
	if err := missing.Delete(t.Context(), daemonSet); err != nil {
		t.Errorf("delete of the absent: %v", err)
	}
	there, _ := serve(t, http.StatusConflict, status(http.StatusConflict, "AlreadyExists"))
	err := there.Create(t.Context(), objects.Object{"apiVersion": "v1", "kind": "Pod", "metadata": objects.Object{"name": "p"}})
	if !errors.Is(err, fs.ErrExist) {
		t.Errorf("create: %v", err)
	}
	forbidden, _ := serve(t, http.StatusForbidden, status(http.StatusForbidden, "Forbidden"))
	if err := forbidden.Delete(t.Context(), daemonSet); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("delete that is forbidden: %v", err)
	}
}

func TestKubeconfigIsNamed(t *testing.T) {
	t.Parallel()
	if _, err := objects.New(filepath.Join(t.TempDir(), "missing")); err == nil {
		t.Error("a kubeconfig that is not there is no error")
	}
}
