// The server of the balancing benchmarks: says who it is. It takes the first inherited socket
// where there is one, and listens on PORT where not. In the directory READY it makes a file named
// by its pid when it listens. With WORK, a request takes 1 ms of CPU and 3 ms of waiting.
'use strict';
const { writeFileSync } = require('fs');
const http = require('http');

const { READY, PORT, LISTEN_FDS, WORK } = process.env;
const name = String(process.pid);

function work(response) {
  const end = process.hrtime.bigint() + 1000000n;
  while (process.hrtime.bigint() < end);
  setTimeout(() => response.end(name), 3);
}

const server = http.createServer((request, response) => {
  if (WORK) work(response);
  else response.end(name);
});
const ready = () => writeFileSync(`${READY}/${name}`, '');
if (LISTEN_FDS) server.listen({ fd: 3 }, ready);
else server.listen(Number(PORT), '127.0.0.1', ready);
