package load

import "testing"

func TestIperfBytes(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		line  string
		size  float64
		again int
		ok    bool
	}{
		{"[  5]   0.10-0.20   sec   256 KBytes  21.0 Mbits/sec                  ", 256 << 10, 0, true},
		{"[  5]   0.60-0.70   sec   0.00 Bytes  0.00 bits/sec                  ", 0, 0, true},
		{"[  5]   0.90-1.00   sec  1.50 MBytes  20.6 Mbits/sec    7   1.12 MBytes       ", 1.5 * (1 << 20), 7, true},
		{"[  5]  17.00-17.10  sec   512 Bytes  41.0 Kbits/sec   12    256 KBytes       ", 512, 12, true},
		{"[  5]   0.00-5.90   sec  14.4 MBytes  20.4 Mbits/sec                  receiver", 0, 0, false},
		{"[ ID] Interval           Transfer     Bitrate         Retr  Cwnd", 0, 0, false},
		{"[  5] local 10.0.0.1 port 5998 connected to 10.0.0.2 port 40438", 0, 0, false},
		{"", 0, 0, false},
	} {
		size, again, ok := iperfBytes(tt.line)
		if size != tt.size || again != tt.again || ok != tt.ok {
			t.Errorf("%q: %g bytes, %d again, %t", tt.line, size, again, ok)
		}
	}
}
