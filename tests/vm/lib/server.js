// A server as people write them: it knows nothing of pmr, nor of the cluster module. It says who it
// is in the words of `pmr demo-backend`.
const { env, pid } = process;
require('http')
  .createServer((request, response) => response.end(`web instance ${env.NODE_APP_INSTANCE} (pid ${pid})`))
  .listen(env.PORT);
