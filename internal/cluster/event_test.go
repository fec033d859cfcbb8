package cluster_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/netctl/netctl/internal/model"
)

func TestKubernetesRecords(t *testing.T) {
	t.Parallel()
	api := realServer(t)
	k := newKubernetes(t, api.config())
	for _, tt := range []struct {
		n         model.Notice
		uid, kind string
	}{
		{model.Notice{Kind: "Service", Name: model.Name{Namespace: "default", Name: "recorded"}, UID: "u", Reason: "NodePortConflict", Text: strings.Repeat("ü", 1000), Warning: true}, "u", "Warning"},
		{model.Notice{Kind: "Node", Name: model.Name{Name: "recorded-node"}, Reason: "Starting", Text: "x"}, "recorded-node", "Normal"},
	} {
		eventually(t, func() error { return k.Record(t.Context(), tt.n) }) // the API server makes the namespace itself, soon after its start
		var list struct {
			Items []struct {
				InvolvedObject        struct{ Kind, Namespace, Name, UID string }
				Reason, Type, Message string
				Source                struct{ Component, Host string }
			}
		}
		mustJSON(t, api.must(t, http.MethodGet, "/api/v1/namespaces/default/events?fieldSelector=involvedObject.name="+tt.n.Name.Name, "", ""), &list)
		if len(list.Items) != 1 {
			t.Fatalf("%d events about %s", len(list.Items), tt.n.Name)
		}
		e := list.Items[0]
		if e.InvolvedObject.UID != tt.uid || e.InvolvedObject.Kind != tt.n.Kind || e.Reason != tt.n.Reason || e.Type != tt.kind ||
			e.Source.Component != "netctl" || e.Message == "" || !strings.HasPrefix(tt.n.Text, e.Message) {
			t.Errorf("%+v became %+v", tt.n, e)
		}
	}
	if err := k.Record(t.Context(), model.Notice{Kind: "Service", Name: model.Name{Namespace: "nowhere", Name: "x"}, Reason: "R", Text: "x"}); err == nil {
		t.Error("an event that the server refuses is said to be written")
	}
}
