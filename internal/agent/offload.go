package agent

import (
	"fmt"
	"path/filepath"

	"github.com/netctl/netctl/internal/agent/settings"
	"github.com/netctl/netctl/internal/agent/status"
	"github.com/netctl/netctl/internal/datapath"
	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/internal/offload"
)

// findOffloads settles what the node's TUNs leave to the kernel and to us: as the
// configuration says, or what works. A node that cannot be tested has what its kernel
// grants, as nearly all kernels are well.
func (a *Agent) findOffloads(boot any) {
	switch a.cfg.TUNOffload {
	case settings.OffloadOff:
		a.offload = offload.Result{Why: "switched off"}
		return
	case settings.OffloadOn:
		a.offload = offload.Result{Works: kernel.AllOffloads(), Why: "switched on"}
		return
	case settings.OffloadAuto:
	}
	var err error
	a.offload, err = offload.Find(filepath.Join(a.cfg.StateDir, "offloads"), fmt.Sprint(boot))
	if a.offload.Why == "" {
		a.offload = offload.Result{Works: kernel.AllOffloads(), Why: "not tested: " + err.Error()}
	}
	switch w := a.offload.Works; {
	case err != nil:
		a.log.Warn("TUN offloads are not tested", "error", err)
	case !w.TSO:
		a.log.Warn("this kernel's TUN offloads do not work: packets are cut and joined here, which costs several times as much",
			"checksum", w.Checksum, "uso", w.USO, "why", a.offload.Why)
	}
}

// plain is what pods' devices and the node's are not given whole.
func (a *Agent) plain() datapath.Plain {
	var p datapath.Plain
	if w := a.offload.Works; !w.Checksum || !w.TSO {
		p |= datapath.PlainTCP
	}
	if !a.offload.Works.USO {
		p |= datapath.PlainUDP
	}
	return p
}

// switchOffloads has a device that was taken over do what this agent wants, whatever
// the one before wanted.
func (a *Agent) switchOffloads(t *kernel.TUN) {
	if _, err := t.SetOffloads(a.offload.Works); err != nil {
		a.log.Warn("a device's offloads stay as they are", "interface", t.Name(), "error", err)
	}
}

func (a *Agent) describeOffload() status.Offload {
	w := a.offload.Works
	return status.Offload{Checksum: w.Checksum, TSO: w.TSO, USO: w.USO, Why: a.offload.Why}
}
