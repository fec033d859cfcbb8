package agent

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"testing"

	"github.com/netctl/netctl/cni"
	"github.com/netctl/netctl/internal/agent/loop"
	"github.com/netctl/netctl/internal/agent/record"
	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/nodeport"
)

// Pods that are added at the same time, beside turns of the loop, all keep their
// host ports.
func TestHostPortsOfConcurrentAdds(t *testing.T) {
	t.Parallel()
	const pods = 50
	a := &Agent{pods: make(map[cni.ID]*pod), log: slog.New(slog.DiscardHandler), loop: loop.New(loop.Config[Output]{})}
	a.sockets = nodeport.New(nodeport.Config{
		Pick: func(netip.AddrPort, model.Protocol, netip.AddrPort) (netip.AddrPort, bool) {
			return netip.AddrPort{}, false
		},
		Place: func(netip.Addr) nodeport.Place { return nodeport.PlaceNode },
		Dial: func(context.Context, netip.AddrPort, netip.AddrPort) (net.Conn, error) {
			return nil, errors.New("nobody dials")
		},
		Logger: a.log,
	})
	t.Cleanup(func() {
		if err := a.sockets.Close(); err != nil {
			t.Error(err)
		}
	})
	var adds sync.WaitGroup
	for i := range pods {
		rec := &record.Record{
			ContainerID: strconv.Itoa(i), IfName: "eth0", Addresses: []netip.Addr{netip.MustParseAddr("10.1.1.5")},
			HostPorts: []cni.PortMapping{{HostIP: netip.MustParseAddr("127.77.3.1"), HostPort: uint16(20000 + i), ContainerPort: 80, Protocol: model.UDP}},
		}
		adds.Go(func() {
			a.mu.Lock()
			a.pods[rec.ID()] = &pod{rec: rec}
			a.mu.Unlock()
			if err := a.listen(rec.ID(), rec); err != nil {
				t.Error(err)
			}
		})
	}
	adds.Wait()
	if n := a.sockets.Stats().Listeners; n != pods {
		t.Errorf("%d sockets listen for %d pods", n, pods)
	}
}
