package agent

import (
	"sync"

	"github.com/netctl/netctl/internal/datapath"
)

// portIDs are the IDs of pods' ports: the lowest free one for a new pod, the same
// as before for one that is taken over, because flows are counted against it.
// The zero value is ready for use.
type portIDs struct {
	mu   sync.Mutex
	used map[datapath.PortID]bool // guarded by mu
}

// take returns want if it is a pod's and free, else the lowest that is.
func (p *portIDs) take(want datapath.PortID) datapath.PortID {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.used == nil {
		p.used = make(map[datapath.PortID]bool)
	}
	id := want
	if id < FirstPodPort || id > maxPodPort || p.used[id] {
		for id = FirstPodPort; p.used[id]; id++ {
		}
	}
	p.used[id] = true
	return id
}

// release gives an ID back; giving it back twice is fine.
func (p *portIDs) release(id datapath.PortID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.used, id)
}

// maxPodPort bounds what a record is believed: the table of ports is as long as
// the largest ID.
const maxPodPort = 1 << 14
