package packet

// Fault is why Parse refused a packet.
type Fault uint8

// The faults. FaultNone means the packet is sound.
const (
	FaultNone      Fault = iota
	FaultShort           // shorter than the headers it must have
	FaultVersion         // neither IPv4 nor IPv6
	FaultLength          // a header or total length that cannot be
	FaultChecksum        // the IPv4 header checksum is wrong
	FaultAddress         // an IPv6 header with a v4-mapped address
	FaultOptions         // malformed IPv4 options
	FaultRouting         // source routing: IPv4 LSRR/SSRR, IPv6 routing header with segments left
	FaultExtension       // malformed or too long chain of IPv6 extension headers
	FaultFragment        // a fragment that cannot be reassembled or hides its transport header
	FaultTransport       // the transport header is cut off or contradicts the length
	FaultQuote           // the packet quoted in an ICMP error cannot be read
	FaultVNet            // virtio-net header: unknown flag or type, or hdr_len behind the end
	FaultGSO             // virtio-net header: segmentation that does not fit the packet
	FaultOffload         // virtio-net header: csum_start or csum_offset do not fit the packet
	faultEnd
)

// Faults is how many values Fault has: the size of an array of counters.
const Faults = int(faultEnd)

// String names the fault; the names are label values of metrics.
func (f Fault) String() string {
	if int(f) < len(faultNames) {
		return faultNames[f]
	}
	return "invalid"
}

//nolint:gochecknoglobals // a table known at compile time
var faultNames = [Faults]string{
	FaultNone:      "none",
	FaultShort:     "short",
	FaultVersion:   "version",
	FaultLength:    "length",
	FaultChecksum:  "header_checksum",
	FaultAddress:   "address",
	FaultOptions:   "options",
	FaultRouting:   "source_route",
	FaultExtension: "extension",
	FaultFragment:  "fragment",
	FaultTransport: "transport",
	FaultQuote:     "icmp_quote",
	FaultVNet:      "vnet_header",
	FaultGSO:       "vnet_segmentation",
	FaultOffload:   "vnet_checksum",
}
