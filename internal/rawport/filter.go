package rawport

import (
	"fmt"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/netctl/netctl/internal/packet"
)

const passAll = 1 << 18 // more bytes than any packet has

// passNothing is the filter of a socket that is there to have a port.
func passNothing() []bpf.Instruction { return []bpf.Instruction{bpf.RetConstant{Val: 0}} }

// passOurs is the filter of a raw socket. It keeps the rest of the host's packets
// from being queued. A raw IPv4 socket sees the IP header, a raw IPv6 socket what
// is behind it.
func passOurs(proto int, is4 bool, first uint16, ports int) []bpf.Instruction {
	var prog []bpf.Instruction
	if is4 {
		prog = append(prog, bpf.LoadMemShift{Off: 0})
	} else {
		prog = append(prog, bpf.LoadConstant{Dst: bpf.RegX, Val: 0})
	}
	switch proto {
	case packet.ProtoICMP, packet.ProtoICMPv6:
		prog = append(prog, bpf.LoadIndirect{Off: 0, Size: 1})
		types := []uint32{0, 3, 11, 12} // answer, unreachable, time exceeded, parameter problem
		if !is4 {
			types = []uint32{1, 2, 3, 4, 129}
		}
		for i, t := range types {
			prog = append(prog, bpf.JumpIf{Cond: bpf.JumpEqual, Val: t, SkipTrue: uint8(len(types) - i)})
		}
	default:
		prog = append(prog,
			bpf.LoadIndirect{Off: 2, Size: 2},
			bpf.JumpIf{Cond: bpf.JumpLessThan, Val: uint32(first), SkipTrue: 1},
			bpf.JumpIf{Cond: bpf.JumpLessThan, Val: uint32(first) + uint32(ports), SkipTrue: 1})
	}
	return append(prog, bpf.RetConstant{Val: 0}, bpf.RetConstant{Val: passAll})
}

func attach(fd int, prog []bpf.Instruction) error {
	raw, err := bpf.Assemble(prog)
	if err != nil {
		return fmt.Errorf("assemble a filter: %w", err)
	}
	insns := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		insns[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(insns)), Filter: &insns[0]})
	if err != nil {
		return fmt.Errorf("attach a filter: %w", err)
	}
	return nil
}
