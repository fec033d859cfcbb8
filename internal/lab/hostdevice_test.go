package lab

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/kernel"
)

// netctl0 belongs to the agent, but whoever is root can delete it. Without it the
// node's processes reach no pod, so the agent must not go on as if nothing was.
func TestDeletedHostDeviceComesBackWithTheNextAgent(t *testing.T) {
	t.Parallel()
	l := up(t, Config{Nodes: 1}, echoYAML("web", "node1"))
	ns, err := l.namespace("node1")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	before, _ := l.AgentPID("node1")
	if err := kernel.DeleteInterface(ns, "netctl0"); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, func() error {
		if now, alive := l.AgentPID("node1"); alive && now == before {
			return errors.New("the agent goes on without netctl0")
		}
		return nil
	})
	if logs := l.agentLogs("node1"); !strings.Contains(logs, "somebody deleted netctl0") {
		t.Errorf("the agent does not say why it ended:\n%s", logs)
	}
	if err := l.AwaitAgent(t.Context(), "node1"); err != nil { // its holder starts another one
		t.Fatal(err)
	}
	pod := l.podNow(t, "web")
	eventually(t, 5*time.Second, func() error {
		_, err := l.withOutput("node1", "netctl", "lab", "ping", pod.Addresses[0].String())
		return err
	})
}
