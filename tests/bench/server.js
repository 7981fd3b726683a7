// PM2's counterpart of the demo backend: answers every request at once.
const http = require('http');
http.createServer((request, response) => {
  response.setHeader('Connection', 'close');
  response.end('hello\n');
}).listen(process.env.PORT, '127.0.0.1');
