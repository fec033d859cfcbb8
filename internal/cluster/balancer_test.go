package cluster_test

import (
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/netctl/netctl/internal/model"
)

func TestKubernetesWritesBalancerAddresses(t *testing.T) {
	t.Parallel()
	api := realServer(t)
	k := newKubernetes(t, api.config())
	const path = "/api/v1/namespaces/default/services"
	api.post(t, path, "{apiVersion: v1, kind: Service, metadata: {name: balanced}, spec: {type: LoadBalancer, ports: [{port: 80}]}}")
	type service struct {
		Metadata struct{ UID string }
		Status   struct {
			LoadBalancer struct{ Ingress []struct{ IP, IPMode string } }
		}
	}
	var o service
	mustJSON(t, api.must(t, http.MethodGet, path+"/balanced", "", ""), &o)
	name := model.Name{Namespace: "default", Name: "balanced"}
	for _, addrs := range [][]netip.Addr{{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8::1")}, {netip.MustParseAddr("203.0.113.2")}, nil} {
		if err := k.PublishBalancer(t.Context(), name, o.Metadata.UID, addrs); err != nil {
			t.Fatal(err)
		}
		var got service
		mustJSON(t, api.must(t, http.MethodGet, path+"/balanced", "", ""), &got)
		if len(got.Status.LoadBalancer.Ingress) != len(addrs) {
			t.Fatalf("%v became %v", addrs, got.Status.LoadBalancer.Ingress)
		}
		for i, in := range got.Status.LoadBalancer.Ingress {
			if in.IP != addrs[i].String() || in.IPMode != "VIP" {
				t.Errorf("%v became %v", addrs, got.Status.LoadBalancer.Ingress)
			}
		}
	}
	if err := k.PublishBalancer(t.Context(), name, "another", nil); err == nil || !strings.Contains(err.Error(), "default/balanced") {
		t.Errorf("another service of the name: %v", err)
	}
}
