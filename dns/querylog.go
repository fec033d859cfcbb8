package dns

import (
	"encoding/binary"
	"net/netip"
	"strconv"

	mdns "github.com/miekg/dns"
)

// logQuery writes a question and its answer to the log, if the options want to see
// such an answer to such a client.
func (s *Server) logQuery(x *outside, q *question, from netip.Addr, reply []byte) {
	rcode := uint16(reply[3]) & maskRcode
	answers := binary.BigEndian.Uint16(reply[6:])
	level := logAll
	switch {
	case rcode != rcodeSuccess && rcode != rcodeName:
		level = logErrors
	case rcode == rcodeName || answers == 0:
		level = logDenial
	}
	if level > x.logs {
		return
	}
	namespace := s.inside(from)
	if len(x.logOnly) > 0 && !x.logOnly[namespace] {
		return
	}
	name := ""
	if q.name.len > 0 {
		name, _, _ = mdns.UnpackDomainName(q.name.wire[:q.name.len], 0) // else it says nothing
	}
	proto := "tcp"
	if q.udp {
		proto = "udp"
	}
	s.log.Info("dns query", "client", from, "namespace", namespace, "name", name, "type", typeText(q.qtype), "proto", proto,
		"rcode", mdns.RcodeToString[int(rcode)], "answers", answers, "bytes", len(reply))
}

func typeText(t uint16) string {
	if s, ok := mdns.TypeToString[t]; ok {
		return s
	}
	return "TYPE" + strconv.Itoa(int(t))
}
