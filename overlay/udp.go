package overlay

import (
	"log/slog"

	"golang.zx2c4.com/wireguard/conn"
)

// UDPConfig switches the offloads of the UDP sockets.
type UDPConfig struct {
	NoGSO bool // send datagrams one by one
}

func newUDPBind(cfg UDPConfig, _ *slog.Logger) conn.Bind {
	_ = cfg
	return conn.NewDefaultBind()
}
