package udp

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// Switch turns an offload on or off.
type Switch uint8

// The positions of the switch.
const (
	Auto Switch = iota // on, unless the self-test fails, or this kernel is known to break it
	On
	Off
)

// Offloads says of each offload "on", or "off: " and why.
type Offloads struct{ GSO, GRO string }

const (
	offloadOn  = "on"
	offloadOff = "off: "
	bySettings = "by the settings"
	byKernel   = "the kernel refused it while sending, as for a network card without checksum offload"
)

// releaseFile names the running kernel's release.
const releaseFile = "/proc/sys/kernel/osrelease"

// Choose decides what the kernel is asked to do, and says why.
func Choose(gso, gro Switch) (Options, Offloads) {
	var faultGSO, faultGRO error
	if gso == Auto || gro == Auto {
		faultGSO, faultGRO = SelfTest()
	}
	release, err := os.ReadFile(releaseFile)
	if name := strings.TrimSpace(string(release)); err == nil && breaksGSO(name) {
		faultGSO = fmt.Errorf("it is corrupted by Linux %s", name)
	}
	why := Offloads{GSO: gso.judge(faultGSO), GRO: gro.judge(faultGRO)}
	return Options{GSO: why.GSO == offloadOn, GRO: why.GRO == offloadOn}, why
}

// Faults returns what is off although nobody said so, and why.
func (o Offloads) Faults() []string {
	var out []string
	for _, one := range []struct{ name, what string }{{"GSO", o.GSO}, {"GRO", o.GRO}} {
		if reason, off := strings.CutPrefix(one.what, offloadOff); off && reason != bySettings {
			out = append(out, one.name+": "+reason)
		}
	}
	return out
}

// Offloads brings what was chosen up to date: sending may have shown more.
func (s *Sockets) Offloads(chosen Offloads) Offloads {
	if chosen.GSO == offloadOn && !s.GSO() {
		chosen.GSO = offloadOff + byKernel
	}
	return chosen
}

// judge says whether an offload is on, when that is wrong with it.
func (o Switch) judge(fault error) string {
	switch {
	case o == Off:
		return offloadOff + bySettings
	case o == On, fault == nil, errors.Is(fault, ErrUntested):
		return offloadOn
	default:
		return offloadOff + fault.Error()
	}
}

// breaksGSO reports whether a kernel release is one of 7.0 to 7.1.4, which
// mangle the headers of equal datagrams.
func breaksGSO(release string) bool {
	var major, minor, patch int
	if n, _ := fmt.Sscanf(release, "%d.%d.%d", &major, &minor, &patch); n < 2 {
		return false
	}
	return major == 7 && (minor == 0 || minor == 1 && patch <= 4)
}
