// A proxy as one writes it with Gin: the request goes on with the client's context, so that the
// upstream is cancelled when the client leaves, and every chunk is flushed as it comes.
//
// Usage: gin-proxy LISTEN UPSTREAM, both host:port.
package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/gin-gonic/gin"
)

// Headers of one connection only, which a proxy does not pass on (RFC 9110, section 7.6.1).
var hopByHop = []string{
	"Connection", "Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 4096); return &b }}

func proxy(upstream string) gin.HandlerFunc {
	transport := &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		MaxIdleConns:        256,
		MaxIdleConnsPerHost: 256,
		IdleConnTimeout:     75 * time.Second,
		DisableCompression:  true,
		ReadBufferSize:      4096,
		WriteBufferSize:     4096,
	}
	return func(c *gin.Context) {
		target := *c.Request.URL
		target.Scheme, target.Host = "http", upstream
		request, err := http.NewRequestWithContext(
			c.Request.Context(), c.Request.Method, target.String(), c.Request.Body)
		if err != nil {
			c.AbortWithStatus(http.StatusBadRequest)
			return
		}
		request.Header = c.Request.Header.Clone()
		request.ContentLength = c.Request.ContentLength
		for _, name := range hopByHop {
			request.Header.Del(name)
		}
		response, err := transport.RoundTrip(request)
		if err != nil {
			c.AbortWithStatus(http.StatusBadGateway)
			return
		}
		defer response.Body.Close()
		for name, values := range response.Header {
			c.Writer.Header()[name] = values
		}
		for _, name := range hopByHop {
			c.Writer.Header().Del(name)
		}
		c.Status(response.StatusCode)
		relay(c, response.Body)
	}
}

// Copies until the end. What most programs do when the upstream fails in mid-stream: the handler returns, and the client
// sees a clean end. It stays so here, since the comparison is with what users run.
func relay(c *gin.Context, body io.Reader) {
	buffer := buffers.Get().(*[]byte)
	defer buffers.Put(buffer)
	for {
		n, err := body.Read(*buffer)
		if n > 0 {
			if _, err := c.Writer.Write((*buffer)[:n]); err != nil {
				return
			}
			c.Writer.Flush()
		}
		if err != nil {
			return
		}
	}
}

func main() {
	if len(os.Args) == 2 && os.Args[1] == "--version" {
		fmt.Println(gin.Version)
		return
	}
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: gin-proxy LISTEN UPSTREAM")
		os.Exit(2)
	}
	gin.SetMode(gin.ReleaseMode)
	engine := gin.New()
	engine.NoRoute(proxy(os.Args[2]))
	server := &http.Server{Addr: os.Args[1], Handler: engine, ReadHeaderTimeout: 30 * time.Second}
	fmt.Fprintln(os.Stderr, server.ListenAndServe())
	os.Exit(1)
}
