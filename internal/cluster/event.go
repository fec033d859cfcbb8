package cluster

import (
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/netctl/netctl/internal/model"
)

// eventTextMost is what the API server takes of an Event's message.
const eventTextMost = 1024

// Record writes an Event about an object. Those about cluster-wide objects are in
// the namespace default, as everybody's are.
func (k *Kubernetes) Record(ctx context.Context, n model.Notice) error {
	now := metav1.NewTime(time.Now())
	e := corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: n.Name.Namespace, GenerateName: n.Name.Name + "."},
		InvolvedObject: corev1.ObjectReference{
			APIVersion: "v1", Kind: n.Kind, Namespace: n.Name.Namespace, Name: n.Name.Name, UID: types.UID(n.UID),
		},
		Reason: n.Reason, Message: n.Text, Type: corev1.EventTypeNormal, Count: 1, FirstTimestamp: now, LastTimestamp: now,
		Source: corev1.EventSource{Component: "netctl", Host: k.cfg.Node}, ReportingController: "netctl", ReportingInstance: k.cfg.Node,
	}
	if n.Warning {
		e.Type = corev1.EventTypeWarning
	}
	if len(e.Message) > eventTextMost {
		e.Message = strings.ToValidUTF8(e.Message[:eventTextMost], "")
	}
	if e.Namespace == "" {
		e.Namespace = metav1.NamespaceDefault
	}
	if n.Kind == "Node" && n.UID == "" {
		e.InvolvedObject.UID = types.UID(n.Name.Name) // as kubelets write it
	}
	if err := k.api.core.Post().Namespace(e.Namespace).Resource("events").Body(&e).Do(ctx).Error(); err != nil {
		return fmt.Errorf("write event %s about %s %s: %w", n.Reason, n.Kind, n.Name, err)
	}
	return nil
}
